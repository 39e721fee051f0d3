"""A bundle that is still in memory: backends load its artefacts before anything is written."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from tadiff_rt.bundle import Bundle
from tadiff_rt.manifest import Artefact, File


@dataclass(frozen=True)
class Draft(Bundle):
    """A bundle whose files are handed over as bytes; everything else is checked as usual."""

    files: dict[str, bytes] = field(default_factory=dict, repr=False)

    def read(self, artefact: File) -> bytes:
        """See `Bundle.read`; hashes are those of the bytes by construction."""
        return self.files[artefact.file]

    def having(self, artefact: Artefact, data: bytes) -> "Draft":
        """A draft with one more artefact, for a backend to load."""
        kept = tuple(a for a in self.manifest.artefacts if a.file != artefact.file)
        return self._with(artefact.file, data, artefacts=(*kept, artefact))

    def attaching(self, file: str, data: bytes) -> "Draft":
        """A draft with one more file for people."""
        attached = File(file=file, **digest(data))
        return self._with(file, data, attachments=(*self.manifest.attachments, attached))

    def _with(self, file: str, data: bytes, **update: object) -> "Draft":
        manifest = self.manifest.model_copy(update=update)
        return Draft(self.path, manifest, "", {**self.files, file: data})


def digest(data: bytes) -> dict[str, object]:
    """Size and hash of a file, as the manifest records them."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


NOWHERE = Path("draft.tadiff")
"""What errors of a draft give as its place."""
