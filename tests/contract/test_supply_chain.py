"""What the code never does, read off the code: run what it reads, call a shell, listen to other machines."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("src", "stages", "benchmarks") for path in (PROJECT / folder).rglob("*.py")
)
UNPICKLER = "src/cifarflow/data/sources/cifar10.py"
NETWORK_SERVERS = re.compile(r"0\.0\.0\.0|[\"']::[\"']")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A call as the code has it: its dotted name, and its keyword arguments that are written out."""

    name: str
    named: dict[str, ast.expr]
    line: int

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]

    def says(self, keyword: str, value: str | bool | None, *, default: bool | None = None) -> bool:
        """Whether the keyword has this value for certain; `default` is what leaving it out means."""
        given = self.named.get(keyword, ast.Constant(default))
        return isinstance(given, ast.Constant) and given.value == value


UNPICKLERS = re.compile(r"(pickle|joblib|dill|marshal)\.(load|loads|Unpickler)")
# torch and torchvision unpickle what these bring, or what lies where they would put it, and check neither.
HUB = {"load_state_dict_from_url", "load_url", "get_state_dict", "hub.load", "torch.hub.load"}
OWN_WEIGHTS = {"save_model"}  # `weights` is a path of ours
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
FAULTS: dict[str, Callable[[Call], object]] = {
    "runs text": lambda call: call.name in RUNS_TEXT,
    "starts a shell": lambda call: not call.says("shell", False, default=False),
    "unpickles": lambda call: UNPICKLERS.fullmatch(call.name),
    "may unpickle": lambda call: call.name == "torch.load" and not call.says("weights_only", True),
    "unpickles a download": lambda call: call.name in HUB or call.last in HUB,
    "unpickles a download of torchvision's": lambda call: (
        call.name not in OWN_WEIGHTS and not call.says("weights", None, default=None)
    ),
    "may unpickle arrays": lambda call: not call.says("allow_pickle", False, default=False),
    "builds objects": lambda call: call.name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"},
    "is YAML that is not safe": lambda call: (
        call.last == "YAML" and not call.says("typ", "safe") and "typ" in call.named
    ),
    "lets an archive choose where it writes": lambda call: call.last in {"extractall", "unpack_archive"},
    "trusts any server": lambda call: not call.says("verify", True, default=True),
    "runs a stranger's code": lambda call: not call.says("trust_remote_code", False, default=False),
}


def calls(tree: ast.AST) -> Iterator[Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            named = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            yield Call(name=ast.unparse(node.func), named=named, line=node.lineno)


def faults(tree: ast.Module) -> list[str]:
    """The calls that run what they are given, or might."""
    return [
        f"line {call.line}: {call.name} {text}"
        for call in calls(tree)
        for text, is_wrong in FAULTS.items()
        if is_wrong(call)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_no_code_runs_what_it_reads(path: Path) -> None:
    assert faults(tree_of(path)) == []


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "torchvision.models.vgg16(weights='IMAGENET1K_V1')",
        "models.vgg16(weights=VGG16_Weights.DEFAULT)",
        "get_model(name, weights=asked)",
        "torch.hub.load_state_dict_from_url(url, weights_only=True)",
        "load_state_dict_from_url(url)",
        "model_zoo.load_url(url)",
        "VGG16_Weights.DEFAULT.get_state_dict(check_hash=True)",
        "torch.hub.load(repository, name)",
        "pickle.loads(content)",
        "pickle.Unpickler(stream)",
        "yaml.load(text, Loader=yaml.Loader)",
        "YAML(typ='unsafe')",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=asked)",
        "tar.extractall(folder)",
        "requests.get(url, verify=False)",
    ],
)
def test_the_reader_of_code_sees_what_it_looks_for(code: str) -> None:
    assert len(faults(ast.parse(code))) == 1


def test_one_file_unpickles_and_only_what_has_the_published_digest() -> None:
    """Its unpickler is a subclass that knows three names; every use of it takes verified bytes."""
    users = [
        path for path in SOURCES if re.search(r"\b(Unpickler\b|loads?\b.*pickle)", path.read_text("utf-8"))
    ]
    assert [path.relative_to(PROJECT).as_posix() for path in users] == [UNPICKLER]
    tree = tree_of(PROJECT / UNPICKLER)
    assert [call.name for call in calls(tree)].count("_ArrayUnpickler") == 1
    arguments = [
        ast.unparse(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "load_pickle"
    ]
    assert arguments
    assert all(argument.startswith("_verified(") for argument in arguments)


def test_nothing_listens_to_other_machines() -> None:
    for path in [*SOURCES, *(PROJECT / "tests").rglob("*.py"), PROJECT / "Makefile", PROJECT / "README.md"]:
        if path != Path(__file__):
            assert not NETWORK_SERVERS.search(path.read_text(encoding="utf-8")), path


def test_every_package_is_one_exact_version() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = [project["project"]["dependencies"], project["build-system"]["requires"]]
    packages = [package for group in [*groups, *project["dependency-groups"].values()] for package in group]
    loose = [package for package in packages if not re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", package)]
    assert loose == []
    assert "exclude-newer" in project["tool"]["uv"]
