"""`controller.yaml`: what an administrator decides about a running controller. Every key has a default."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from controller.config import lines
from controller.config.schema import Section
from edgefarm.credentials import JOIN_PORT, parse_address
from edgefarm.errors import FleetFileError, UserError

Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9:][A-Za-z0-9.:-]{0,252}$")]
LISTEN = f"0.0.0.0:{JOIN_PORT}"


class OwnAuthority(Section):
    """`authority`: files of your own certificate authority, PEM. It signs the controller's; read at the first start only."""

    certificate: str
    key: str


class ControllerFile(Section):
    """The file's content.

    Attributes:
        listen: the join port, HOST:PORT; the main port is the next one. Port 0: any that is free, and the same one after a restart.
        main: the main port, if it is another one.
        advertise: HOST:PORT of the main port as others reach it, if that is not the host that they enrolled at.
        names: host names and addresses for the controller's certificate, for programs that check them. Agents and this command don't.
        metrics: HOST:PORT where Prometheus reads `/metrics` and `/discovery`; absent: nowhere, and devices report nothing.
        certificate_days: life of a member's certificate; it is renewed when two thirds are over.
    """

    version: Literal[1] = 1
    listen: str = LISTEN
    main: str | None = None
    advertise: str | None = None
    names: list[Host] = Field(default_factory=list)
    authority: OwnAuthority | None = None
    metrics: str = ""
    certificate_days: Annotated[float, Field(ge=0.25, le=825, allow_inf_nan=False)] = 30.0


@dataclass(frozen=True)
class ControllerSettings:
    """A checked file; paths are absolute."""

    join: str
    main: str
    advertise: str
    names: tuple[str, ...]
    authority: tuple[Path, Path] | None
    certificate_s: float
    metrics: str = ""


def load_controller(path: Path | None, listen: str | None) -> ControllerSettings:
    """Reads and checks the file; without one, all is as by default.

    Args:
        listen: instead of the file's.

    Raises:
        FleetFileError: with file, line and field.
        UserError: `listen` is no address.
    """
    if path is None:
        file, folder = ControllerFile(), Path()
    else:
        file, folder = _read(path.absolute()), path.absolute().parent
    host, port = parse_address(listen or file.listen, least_port=0)
    main = file.main if file.main is not None and listen is None else f"{host}:{port and (port + 1 if port < 65535 else port - 1)}"
    above = (folder / file.authority.certificate, folder / file.authority.key) if file.authority else None
    names = tuple(file.names) or ((host.strip("[]"),) if host.strip("[]") not in ("0.0.0.0", "::") else ())
    return ControllerSettings(f"{host}:{port}", main, file.advertise or "", names, above, file.certificate_days * 86400.0, file.metrics)


def _read(path: Path) -> ControllerFile:
    document = lines.read(path)
    try:
        file = ControllerFile.model_validate({} if document.content is None else document.content)
    except ValidationError as error:
        raise _first_error(error, document) from None
    for field in ("listen", "main", "advertise"):
        try:
            parse_address(getattr(file, field) or LISTEN, least_port=1 if field == "advertise" else 0)
        except UserError as error:
            raise document.error(str(error), (field,)) from None
    return file


def _first_error(error: ValidationError, document: lines.Document) -> FleetFileError:
    problem = error.errors()[0]
    key = tuple(problem["loc"])
    if problem["type"] == "extra_forbidden":
        section: type[BaseModel] = OwnAuthority if len(key) > 1 else ControllerFile
        near = difflib.get_close_matches(str(key[-1]), section.model_fields, 1, 0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(sorted(section.model_fields))}"
        return document.error(f"unknown key '{key[-1]}'; {hint}", key)
    if problem["type"] == "missing":
        return document.error("is missing", key)
    return document.error(f"{problem['msg']}, got {problem['input']!r}", key)
