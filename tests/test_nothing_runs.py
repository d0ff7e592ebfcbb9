"""What comes from files is data: no pickle, no code, no archive unpacked, no write unprepared.

And every name that is used is one that there is.
"""

import ast
import builtins
import pathlib
import pickle
import symtable

import numpy as np
import pytest

from lt_jax.runtime import arrays

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(path for name in ("lt_jax", "experiments") for path in (ROOT / name).rglob("*.py"))
LIBRARY = [path for path in FILES if path.is_relative_to(ROOT / "lt_jax")]
# Modules that load programs, or unpack archives wherever these say.
MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml",
    "tarfile", "code", "runpy",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {"unpack_archive", "extractall", "read_pickle"}
SOURCES = "lt_jax/data/sources/__init__.py"  # imports the modules of its own folder


def calls(path):
    """Each call of a file, with the name it is called by: the last one, and the one before."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute):
                owner = function.value.id if isinstance(function.value, ast.Name) else ""
                yield node, function.attr, owner
            elif isinstance(function, ast.Name):
                yield node, function.id, None


def imported(path):
    """The first names of all modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def keywords(node):
    return {word.arg: word.value for word in node.keywords}


def faults_of(path):
    """What a file does that can run what it reads."""
    yield from sorted(MODULES & set(imported(path)))
    for node, name, owner in calls(path):
        given = keywords(node)
        if (owner is None and name in BUILTINS) or (owner is not None and name in METHODS):
            yield f"{node.lineno}: {name}"
        if owner == "os" and name in ("system", "popen"):
            yield f"{node.lineno}: os.{name}"
        # Experiments import peers, and take Python files for what they are.
        if name == "import_module" and path in LIBRARY and path != ROOT / SOURCES:
            yield f"{node.lineno}: import_module"
        if name == "load" and owner in ("np", "numpy", "torch", "jnp"):
            refused = given.get("allow_pickle", given.get("weights_only"))
            if not isinstance(refused, ast.Constant) or refused.value is not (owner == "torch"):
                yield f"{node.lineno}: {owner}.load that may unpickle"
        on = {key for key, word in given.items() if getattr(word, "value", None) is True}
        if on & {"shell", "allow_pickle"}:
            yield f"{node.lineno}: {name} with a shell or a pickle"


@pytest.mark.parametrize("line", [
    "import pickle", "from joblib import load", "import yaml", "import tarfile", "eval('1')",
    "exec(text)", "np.load(path)", "np.load(path, allow_pickle=True)", "torch.load(path)",
    "torch.load(path, weights_only=False)", "archive.extractall(out)",
    "subprocess.run(x, shell=True)", "np.save(path, x, allow_pickle=True)", "os.system(x)",
])  # fmt: skip
def test_the_search_finds_it(tmp_path, line):
    (tmp_path / "x.py").write_text(line)
    assert list(faults_of(tmp_path / "x.py"))


def test_no_file_can_make_a_program_of_what_it_reads():
    found = {str(path.relative_to(ROOT)): list(faults_of(path)) for path in FILES}
    assert {path: what for path, what in found.items() if what} == {}


def opened_for_writing(node, name, owner):
    """Whether a call writes a file that it names itself."""
    if name in ("write_text", "write_bytes", "savefig", "to_csv", "to_parquet", "tofile"):
        return True
    if name != "open" or owner == "Image":
        return False
    modes = [*node.args[0 if owner is not None else 1 :], keywords(node).get("mode")]
    said = [str(mode.value) for mode in modes if isinstance(mode, ast.Constant)]
    return any(set(mode) & set("wax+") for mode in said)


def unprepared(path):
    """Lines that write a file outside of `files.whole_file` and `files.disk_errors`."""
    prepared = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.With):
            names = {
                name
                for item in node.items
                for inner in ast.walk(item.context_expr)
                for name in [getattr(inner, "attr", getattr(inner, "id", None))]
            }
            if names & {"whole_file", "disk_errors"}:
                prepared |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    for node, name, owner in calls(path):
        if opened_for_writing(node, name, owner) and node.lineno not in prepared:
            yield node.lineno


@pytest.mark.parametrize(
    "text", ["open(p, 'w')", "p.open('ab')", "p.write_text('x')", "f.savefig(p)"]
)
def test_the_search_finds_unprepared_writes(tmp_path, text):
    (tmp_path / "x.py").write_text(text)
    assert list(unprepared(tmp_path / "x.py")) == [1]
    (tmp_path / "x.py").write_text(f"with files.disk_errors(p, 'x'):\n    {text}")
    assert list(unprepared(tmp_path / "x.py")) == []


def test_every_write_is_whole_or_tells_of_a_full_disk():
    found = {str(path.relative_to(ROOT)): list(unprepared(path)) for path in LIBRARY}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_every_experiment_ends_as_the_command_lines_do():
    """With SIGTERM heard and users' errors in a line: not by absl's own `app.run`."""
    ended = {
        str(path.relative_to(ROOT)): [line.lineno for line, name, owner in calls(path)
                                      if (name, owner) == ("run", "app")]
        for path in FILES
    }  # fmt: skip
    assert {path: lines for path, lines in ended.items() if lines}.keys() == {"lt_jax/command.py"}


GIVEN = {"__file__", "__name__", "__doc__", "__spec__", "__path__"} | set(dir(builtins))


def undefined(text):
    """Global names that a module uses and nothing binds; ruff's F821 would take shapes for such."""
    top = symtable.symtable(text, "", "exec")
    tables = [top]
    for table in tables:
        tables += table.get_children()
    # What a function declares global and binds is the module's, too.
    bound = GIVEN | {
        symbol.get_name()
        for table in tables
        for symbol in table.get_symbols()
        if (table is top or symbol.is_declared_global())
        and (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace())
    }
    used = {
        symbol.get_name()
        for table in tables
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (table is top or symbol.is_global())
    }
    return sorted(used - bound)


@pytest.mark.parametrize("text", [
    "lost.save(1)", "def f():\n    lost()", "f = lambda x: [lost for _ in x]",
    "class A:\n    def f(self):\n        return lost", "def f() -> lost: ...", "@lost\ndef f(): 1",
    "def f():\n    lost = 1\ndef g():\n    return lost", "from lost import found\nlost.save()",
])  # fmt: skip
def test_the_search_finds_a_name_that_nothing_binds(text):
    assert undefined(text) == ["lost"]


def test_the_search_takes_what_is_bound_somewhere():
    text = (
        "import a.b as c\nfrom d import e\nx: 'Float[Array, \"h w\"]' = __name__\n"
        "def f(y, *z, w=len):\n    global g\n    g = [c, e, x, y, z, w, f, k] + [q for q in z]\n"
        "class H:\n    k = 1\n    m = k\ndef n():\n    return H, g\nk = 2\n"
    )
    assert undefined(text) == []


def test_every_global_name_is_bound():
    found = {str(path.relative_to(ROOT)): undefined(path.read_text()) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


class _Program:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.at),)


def test_a_pickle_in_the_place_of_arrays_is_refused_and_does_not_run(tmp_path):
    mark = tmp_path / "it ran"
    program = _Program()
    program.at = str(mark)
    objects = np.array([program, None], dtype=object)
    one, several, plain = (tmp_path / name for name in ("x.npy", "x.npz", "y.npy"))
    np.save(one, objects, allow_pickle=True)
    np.savez(several, objects)
    plain.write_bytes(pickle.dumps(program))
    for read, path in ((arrays.load_one, one), (arrays.load, several), (arrays.load_one, plain)):
        with pytest.raises(arrays.ArrayFileError, match=rf"{path}: damaged .*delete the folder"):
            read(path)
    assert not mark.exists()
    pickle.loads(plain.read_bytes())  # would have
    assert mark.exists()


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "lost"])
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_a_damaged_file_of_arrays_is_named(tmp_path, kind, harm):
    path = tmp_path / f"x.{kind}"
    values = {"a": np.arange(300.0), "b": np.ones(4, np.float32)}
    if kind == "npz":
        arrays.save(path, values)
        found = arrays.load(path)
        assert {name: found[name].tolist() for name in found} == {
            name: own.tolist() for name, own in values.items()
        }
        read = arrays.load
    else:
        np.save(path, values["a"], allow_pickle=False)
        np.testing.assert_array_equal(arrays.load_one(path, mapped=True), values["a"])
        read = arrays.load_one
    raw = bytearray(path.read_bytes())
    if harm == "flip":
        raw[len(raw) // 3 if kind == "npz" else 0] ^= 1
    path.write_bytes({"cut": raw[: len(raw) // 2], "flip": raw, "empty": b"", "lost": b""}[harm])
    if harm == "lost":
        path.unlink()
    told = "no such file" if harm == "lost" else "damaged"
    with pytest.raises(
        arrays.ArrayFileError, match=f"{path}: {told}.*delete the folder {tmp_path}"
    ):
        read(path)
    if kind == "npy":
        with pytest.raises(arrays.ArrayFileError, match=str(path)):
            arrays.load_one(path, mapped=True)
