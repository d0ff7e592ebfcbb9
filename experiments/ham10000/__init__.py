"""HAM10000 on two cores: results, and the sample grid."""
