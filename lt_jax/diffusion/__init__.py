"""The generator: diffusion process, guidance, samplers, training, synthesis."""
