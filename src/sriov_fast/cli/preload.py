"""What a bundle does first: put in place the modules that every request needs, and a finder for others.

``bundle.write`` stores this module's code in the bundle; a plugin's process never imports it. Only what the
interpreter has already may be imported here, so not even ``__future__``.

A module is checked against its source by time and size, as Python does for its bytecode: what was changed
since the bundle was written is left to the ordinary finders.
"""

import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader, SourceFileLoader
from marshal import loads
from posix import O_CLOEXEC, O_RDONLY, close, fstat, pread, stat
from posix import open as open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import TypedDict

    # Path, time in ns, size, and whether it is a package.
    Source = tuple[str, int, int, bool]
    Hot = list[tuple[str, Source, CodeType]]
    # Where the code is, counted from the end of the head, and its length; None for a compiled module.
    Cold = dict[str, tuple[Source, tuple[int, int] | None]]
    # Its path, what tells it from one that replaces it, and where its head ends.
    Bundle = tuple[str, tuple[int, int, int], int]

    class Head(TypedDict):
        """What every process reads of a bundle. ``version`` is the interpreter's, ``preload`` this module."""

        version: str
        preload: CodeType
        hot: Hot
        cold: Cold


class Loader(SourceFileLoader):
    """Takes a module's code from the bundle, and in all else is the loader of its source."""

    def __init__(self, name: str, path: str, bundle: "Bundle", place: "tuple[int, int]") -> None:
        super().__init__(name, path)
        self.bundle = bundle
        self.place = place

    def get_code(self, fullname: str) -> "CodeType | None":
        """Read the code. Of a bundle that was replaced meanwhile, the places are not known."""
        path, identity, base = self.bundle
        offset, size = self.place
        try:
            fd = open_file(path, O_RDONLY | O_CLOEXEC)
        except OSError:
            return super().get_code(fullname)
        try:
            if identity_of(fd) == identity:
                code: CodeType = loads(pread(fd, size, base + offset))  # noqa: S302 (as bytecode anywhere)
                return code
        finally:
            close(fd)
        return super().get_code(fullname)


class Finder:
    """Finds what the bundle has: cold modules, and compiled ones, for which no directory need be listed."""

    def __init__(self, bundle: "Bundle", cold: "Cold") -> None:
        self.bundle = bundle
        self.cold = cold

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """Return the specification of a module whose source is what it was; else None."""
        found = self.cold.get(name)
        if found is None:
            return None
        source, place = found
        if not is_current(source):
            return None
        if place is None:
            return spec_of(name, source, ExtensionFileLoader(name, source[0]))
        return spec_of(name, source, Loader(name, source[0], self.bundle, place))


def identity_of(fd: int) -> "tuple[int, int, int]":
    """Return what tells a file from the one that replaces it."""
    there = fstat(fd)
    return there.st_dev, there.st_ino, there.st_mtime_ns


def is_current(source: "Source") -> bool:
    """Say whether a source is what it was when the bundle was written."""
    path, time, size, _ = source
    try:
        there = stat(path)
    except OSError:
        return False
    return there.st_mtime_ns == time and there.st_size == size


def spec_of(name: str, source: "Source", loader: "SourceFileLoader | ExtensionFileLoader") -> ModuleSpec:
    """Return what the ordinary finder would have made of a source."""
    path, _, _, package = source
    spec = ModuleSpec(name, loader, origin=path, is_package=package)
    spec.has_location = True
    if type(loader) is not ExtensionFileLoader:
        spec.cached = path  # or it is worked out, which takes longer than all the rest
    if spec.submodule_search_locations is not None:
        spec.submodule_search_locations.append(path.rpartition("/")[0])
    return spec


def module_of(spec: ModuleSpec) -> "ModuleType":
    """Return a module with what the import system gives each."""
    module = type(sys)(spec.name)
    known: dict[str, object] = {
        "__spec__": spec,
        "__loader__": spec.loader,
        "__package__": spec.parent,
        "__file__": spec.origin,
        "__cached__": spec.cached,
    }
    if spec.submodule_search_locations is not None:
        known["__path__"] = spec.submodule_search_locations
    module.__dict__.update(known)
    return module


def put_in_place(hot: "Hot") -> None:
    """Make the modules, without the import system, which would take 20 us for each.

    They come in the order in which their imports ended, so each finds what it imports. The first that is not
    current ends it: those after it may depend on it.
    """
    modules = sys.modules
    for name, source, code in hot:
        if name in modules:
            continue
        if not is_current(source):
            return
        module = modules[name] = module_of(spec_of(name, source, SourceFileLoader(name, source[0])))
        try:
            exec(code, module.__dict__)  # noqa: S102
        except BaseException:
            del modules[name]
            raise
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)


def start(path: str, fd: int, base: int, head: "Head") -> None:
    """Use the bundle ``path``, open as ``fd``, whose head is ``head`` and ends at ``base``.

    What goes wrong rises, and the ordinary finders do what is left.
    """
    sys.meta_path.insert(0, Finder((path, identity_of(fd), base), head["cold"]))
    put_in_place(head["hot"])
