"""Archives are read whole and in order, whatever they are packed in, and refused when unsafe or damaged."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from slm_jax.data.datasets.archives import members, read_text, verify
from slm_jax.errors import UserError

FILES = {"corpus/b.txt": b"second", "corpus/deep/a.bin": bytes(range(256)) * 300}


def pack(path, files, links=()):
  if path.suffix == ".zip":
    with zipfile.ZipFile(path, "w") as archive:
      for name, data in files.items():
        archive.writestr(name, data)
    return path
  mode = "w:gz" if path.name.endswith("gz") else "w"
  with tarfile.open(path, mode) as archive:
    for name, data in files.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(data)
      archive.addfile(entry, io.BytesIO(data))
    for name, target in links:
      entry = tarfile.TarInfo(name)
      entry.type, entry.linkname = tarfile.SYMTYPE, target
      archive.addfile(entry)
  return path


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.zip", "folder"])
def test_every_kind_gives_the_same_files_and_no_litter(tmp_path, name):
  litter = {"corpus/._b.txt": b"?", "__MACOSX/corpus/b.txt": b"?", "corpus/.DS_Store": b"?"}
  path = tmp_path / name
  if name == "folder":
    for member, data in {**FILES, **litter}.items():
      (path / member).parent.mkdir(parents=True, exist_ok=True)
      (path / member).write_bytes(data)
  else:
    pack(path, {**FILES, **litter})
  assert {member: read() for member, read in members(path)} == FILES


@pytest.mark.parametrize("kind", ["a.tar.gz", "a.zip"])
@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil", "ok/../../evil", "..\\evil", "C:/x"])
def test_members_outside_of_the_folder_are_refused(tmp_path, kind, name):
  archive = pack(tmp_path / kind, {"good.txt": b"", name: b"x"})
  with pytest.raises(UserError, match="would be written outside"):
    list(members(archive))


def test_links_are_refused(tmp_path):
  archive = pack(tmp_path / "a.tar", FILES, links=[("corpus/link", "/etc/passwd")])
  with pytest.raises(UserError, match=r"'corpus/link' is a link to '/etc/passwd'"):
    list(members(archive))


@pytest.mark.parametrize("kind", ["a.tar", "a.tar.gz", "a.zip"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_archives_cut_short_are_named(tmp_path, kind, share):
  data = pack(tmp_path / kind, FILES).read_bytes()
  (tmp_path / kind).write_bytes(data[: int(share * len(data))])
  if kind == "a.tar" and share == 0.95:
    return  # only the padding behind the end mark is gone
  with pytest.raises(UserError, match=f"{kind} cannot be read on after"):
    for _, read in members(tmp_path / kind):
      read()


def test_what_is_missing_or_no_archive_is_named(tmp_path):
  with pytest.raises(UserError, match="does not exist"):
    list(members(tmp_path / "nowhere.tar"))
  (tmp_path / "page.tar.gz").write_text("<html>404</html>" * 100)
  with pytest.raises(UserError, match=r"page.tar.gz cannot be read"):
    list(members(tmp_path / "page.tar.gz"))


def test_text_of_plain_gzip_and_packed_files(tmp_path):
  archive = pack(tmp_path / "x.tsv.tar.gz", {"x.tsv": "\ufeffä\t1\n".encode()})
  assert read_text(archive, ".tsv") == "ä\t1\n"
  with pytest.raises(UserError, match=r"0 files \*.csv"):
    read_text(archive, ".csv")
  (tmp_path / "latin.tsv").write_bytes("ä".encode("latin-1"))
  with pytest.raises(UserError, match="latin.tsv is not UTF-8 at byte 0"):
    read_text(tmp_path / "latin.tsv")


def test_published_checksums_are_checked(tmp_path):
  archive = pack(tmp_path / "mls.tar.gz", FILES)
  assert not verify(archive)
  digest = hashlib.md5(archive.read_bytes()).hexdigest()
  (tmp_path / "md5sum.txt").write_text(f"{'0' * 32}  other.tar.gz\n{digest}  ./mls.tar.gz\n")
  assert verify(archive)
  archive.write_bytes(archive.read_bytes() + b"!")
  with pytest.raises(UserError, match=f"md5sum.txt says {digest}"):
    verify(archive)
