"""What the code never does, read off the code: run what it reads, call a shell, listen to other machines."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


def files_of(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in PROJECT.glob(pattern))


SOURCES = files_of("src/**/*.py", "stages/**/*.py", "benchmarks/**/*.py", "docs/**/*.py")
TESTS = files_of("tests/**/*.py")
# What people copy into a terminal, and what DVC and make start.
COMMANDS = files_of("README*.md", "docs/**/*.md", "Makefile", "dvc.yaml", "recipes/*.yaml", "params.yaml")
UNPICKLER = "src/cifarflow/data/sources/cifar10.py"


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """A function or class where the code calls it, or hands it on uncalled: its full name, whatever it was imported as.

    `named` are the keyword arguments, `given` the others.
    """

    name: str
    line: int
    is_call: bool
    given: list[ast.expr]
    named: dict[str, ast.expr]

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]

    def says(self, keyword: str, value: str | bool | None, *, default: bool | None = None) -> bool:
        """Whether the keyword has this value for certain; `default` is what leaving it out means."""
        given = self.named.get(keyword, ast.Constant(default))
        return isinstance(given, ast.Constant) and given.value == value

    def given_to(self, position: int, keyword: str) -> ast.expr | None:
        return self.given[position] if len(self.given) > position else self.named.get(keyword)


def imported_names(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for: `from torch import load as l` makes it `{"l": "torch.load"}`."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom):
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return {local: name.removeprefix("builtins.") for local, name in names.items()}


def is_read(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Load)


def uses(tree: ast.AST) -> Iterator[Use]:
    """Every dotted name that the code reads, with the arguments of its call where it is called."""
    names = imported_names(tree)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        call = called.get(id(node))
        if call or (isinstance(node, ast.Name | ast.Attribute) and is_read(node) and id(node) not in inner):
            first, dot, rest = ast.unparse(node).partition(".")
            yield Use(
                name=(names.get(first, first) + dot + rest).removeprefix("builtins."),
                line=getattr(node, "lineno", 0),
                is_call=call is not None,
                given=call.args if call else [],
                named={one.arg: one.value for one in call.keywords if one.arg} if call else {},
            )


UNPICKLERS = re.compile(
    r"(_?pickle|cPickle|cloudpickle|joblib|dill|marshal)\.(load|loads|\*)|shelve\..*|torch\.jit\.load|pandas\.read_pickle"
)
UNPICKLER_CLASSES = {"pickle.Unpickler", "_pickle.Unpickler", "dill.Unpickler", "shelve.Shelf"}
# torch and torchvision unpickle what these bring, or what lies where they would put it, and check neither.
HUB = {"load_state_dict_from_url", "load_url", "get_state_dict", "hub.load", "torch.hub.load"}
OWN_WEIGHTS = {"cifarflow.models.bundle.save_model"}  # `weights` is a path of ours
RUNS_TEXT = {"eval", "exec", "__import__"}
STARTS_A_SHELL = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
BUILDS_OBJECTS = {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}
# Of these every mention is a fault: handed on, they would be called elsewhere.
FAULTS_OF_NAMES: dict[str, Callable[[Use], object]] = {
    "runs text": lambda use: use.name in RUNS_TEXT,
    "starts a shell": lambda use: use.name in STARTS_A_SHELL,
    "unpickles": lambda use: UNPICKLERS.fullmatch(use.name),
    "unpickles a download": lambda use: use.name in HUB or use.last in HUB,
    "builds objects": lambda use: use.name in BUILDS_OBJECTS,
    "may unpickle": lambda use: (
        use.name in {"torch.load", "torch.serialization.load"} and not use.says("weights_only", True)
    ),
}
FAULTS_OF_CALLS: dict[str, Callable[[Use], object]] = {
    "makes code of text": lambda use: use.name == "compile",
    "starts a shell by its argument": lambda use: not use.says("shell", False, default=False),
    "unpickles by itself": lambda use: use.name in UNPICKLER_CLASSES,
    "unpickles a download of torchvision's": lambda use: (
        use.name not in OWN_WEIGHTS and not use.says("weights", None, default=None)
    ),
    "may unpickle arrays": lambda use: not use.says("allow_pickle", False, default=False),
    "is YAML that is not safe": lambda use: (
        use.last == "YAML" and not use.says("typ", "safe") and "typ" in use.named
    ),
    "lets an archive choose where it writes": lambda use: use.last in {"extractall", "unpack_archive"},
    "trusts any server": lambda use: not use.says("verify", True, default=True),
    "runs a stranger's code": lambda use: not use.says("trust_remote_code", False, default=False),
    "listens to other machines": lambda use: listens_everywhere(use),
}
EVERYWHERE = {"", "0", "*", "::", "0.0.0.0", None}
SERVERS = re.compile(r"\w*Server|create_server|start_server|bind")


def listens_everywhere(use: Use) -> bool:
    """Whether it opens a port under an address that means every network interface, as an empty one does."""
    if not SERVERS.fullmatch(use.last):
        return False
    pair = use.given_to(0, "address")
    if use.last in {"create_server", "start_server"} and not isinstance(pair, ast.Tuple):
        host = use.given_to(1, "host")  # asyncio's: the first one is what answers
    else:
        host = pair.elts[0] if isinstance(pair, ast.Tuple) and pair.elts else None
    return isinstance(host, ast.Constant) and host.value in EVERYWHERE


def faults(tree: ast.Module) -> list[str]:
    """What runs what it is given, or might."""
    return [
        f"line {use.line}: {use.name} {text}"
        for use in uses(tree)
        for text, is_wrong in {**FAULTS_OF_NAMES, **(FAULTS_OF_CALLS if use.is_call else {})}.items()
        if is_wrong(use)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_code_runs_what_it_reads(path: Path) -> None:
    assert faults(tree_of(path)) == []


ALLOWED_IN_TESTS = {
    # That an attack was refused shows something only where it is seen to work.
    "tests/unit/test_hostile_archives.py": ["pickle.loads unpickles"],
    "tests/unit/test_hostile_checkpoints.py": ["pickle.loads unpickles"],
    # The code that MODEL_CARD.md shows must run as it stands there; we wrote it.
    "tests/unit/test_export_model.py": ["exec runs text", "compile makes code of text"],
}


def test_no_test_runs_what_it_reads_but_those_that_must() -> None:
    found = {name_of(path): faults(tree_of(path)) for path in TESTS}
    texts = {name: [fault.partition(": ")[2] for fault in here] for name, here in found.items() if here}
    assert texts == ALLOWED_IN_TESTS


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "compile(text, name, 'exec')",
        "os.system(text)",
        "from os import system as run; run(text)",
        "map(eval, texts)",
        "import builtins as b; b.exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=asked)",
        "from torch import load; load(path, weights_only=False)",
        "from torch import load as read; read(path)",
        "import torch as t; t.load(path)",
        "read = functools.partial(torch.load)",
        "from torch import serialization; serialization.load(path)",
        "torch.jit.load(path)",
        "from torch import jit; jit.load(path)",
        "from torch.jit import load; load(path)",
        "np.load(path, allow_pickle=True)",
        "pandas.read_pickle(path)",
        "import pandas as pd; pd.read_pickle(path)",
        "import joblib; joblib.load(path)",
        "from joblib import load; load(path)",
        "shelve.open(path)",
        "torchvision.models.vgg16(weights='IMAGENET1K_V1')",
        "models.vgg16(weights=VGG16_Weights.DEFAULT)",
        "get_model(name, weights=asked)",
        "torch.hub.load_state_dict_from_url(url, weights_only=True)",
        "load_state_dict_from_url(url)",
        "from torch.hub import load_state_dict_from_url as fetch; fetch(url)",
        "model_zoo.load_url(url)",
        "VGG16_Weights.DEFAULT.get_state_dict(check_hash=True)",
        "torch.hub.load(repository, name)",
        "from torch import hub; hub.load(repository, name)",
        "pickle.loads(content)",
        "from pickle import loads; loads(content)",
        "import pickle as p; p.load(stream)",
        "read = pickle.loads",
        "map(pickle.loads, contents)",
        "pickle.Unpickler(stream)",
        "from pickle import Unpickler; Unpickler(stream).load()",
        "yaml.load(text, Loader=yaml.Loader)",
        "YAML(typ='unsafe')",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=asked)",
        "subprocess.getoutput(command)",
        "tar.extractall(folder)",
        "requests.get(url, verify=False)",
        "HTTPServer(('', 80), Handler)",
        "http.server.ThreadingHTTPServer(('0', 0), Handler)",
        "socket.create_server(('', 0))",
        "socket.create_server(address=('::', 0))",
        "listener.bind(('', port))",
        "asyncio.start_server(answer, None, 80)",
        "loop.create_server(Protocol, host='')",
    ],
)
def test_the_reader_of_code_sees_what_it_looks_for(code: str) -> None:
    assert len(faults(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "re.compile(text)",
        "torch.compile(model)",
        "compile = asked; run(compile)",
        "from torch import load; load(path, weights_only=True)",
        "safetensors.torch.load_file(path)",
        "json.loads(text)",
        "pickle.dumps(state)",
        "class Careful(pickle.Unpickler): ...",
        "subprocess.run(command)",
        "HTTPServer(('127.0.0.1', 0), Handler)",
        "socket.create_server(('127.0.0.1', 0))",
        "listener.bind((LOOPBACK, 0))",
    ],
)
def test_the_reader_of_code_lets_pass_what_is_sound(code: str) -> None:
    assert faults(ast.parse(code)) == []


def test_one_file_unpickles_and_only_what_has_the_published_digest() -> None:
    """Its unpickler is a subclass that knows three names; every use of it takes verified bytes."""
    users = [path for path in SOURCES if any(use.name in UNPICKLER_CLASSES for use in uses(tree_of(path)))]
    assert [name_of(path) for path in users] == [UNPICKLER]
    tree = tree_of(PROJECT / UNPICKLER)
    assert [use.name for use in uses(tree)].count("_ArrayUnpickler") == 1
    arguments = [ast.unparse(use.given[0]) for use in uses(tree) if use.name == "load_pickle"]
    assert arguments
    assert all(argument.startswith("_verified(") for argument in arguments)


# Written out, or as words of a command in a list.
NETWORK_SERVERS = re.compile(
    r"""0\.0\.0\.0|["']::["']|--bind_all|--(host|bind|listen)\b["',=\s]*(0|::|\*|["']{2})(?![\w.])"""
)


def test_nothing_listens_to_other_machines() -> None:
    paths = {*SOURCES, *TESTS, *COMMANDS} - {Path(__file__)}  # which spells them out below
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in sorted(paths)}
    assert [name for name, text in texts.items() if NETWORK_SERVERS.search(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "mlflow ui --host 0.0.0.0",
        "mlflow ui --host=0",
        "mlflow ui --host 0 --port 5000",
        "mlflow ui --host ::",
        "tensorboard --logdir logs --bind_all",
        '["mlflow", "ui", "--host", "0"]',
        '["mlflow", "ui", "--host", ""]',
        "listen('::')",
    ],
)
def test_a_command_that_would_listen_to_them_is_noticed(text: str) -> None:
    assert NETWORK_SERVERS.search(text)


@pytest.mark.parametrize(
    "text",
    ["mlflow ui --host 127.0.0.1", '"--host", "127.0.0.1"', "torchrun --nproc-per-node 2", "--host host"],
)
def test_a_command_that_stays_on_its_machine_is_let_pass(text: str) -> None:
    assert not NETWORK_SERVERS.search(text)


def test_every_package_is_one_exact_version() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = [project["project"]["dependencies"], project["build-system"]["requires"]]
    packages = [package for group in [*groups, *project["dependency-groups"].values()] for package in group]
    loose = [package for package in packages if not re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", package)]
    assert loose == []
    assert "exclude-newer" in project["tool"]["uv"]
