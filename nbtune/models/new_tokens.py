"""A model that knows more tokens than its files: the folder that it becomes, where each new one has a row of its own.

It lies in nbtune's cache under ``tokens/``, called by the base and the tokens. Tokenizer and config are written at
once, weights when somebody wants their numbers: of a file that holds embeddings (or the head) a copy in which these
have more rows, of every other file a link to the base's. A new row is the mean of all rows that the tokenizer knows, so
that a new token begins as likely as any (Hewitt 2021, "Initializing new word embeddings for pretrained language
models"); the same base and tokens give the same numbers anywhere.
"""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.atomic_io import hidden, publish_folder
from nbtune.disk import cache_folder, disk_errors
from nbtune.errors import DataError, NbtuneError, SpecError
from nbtune.models.token_rows import FILE, INDEX, about_of, base_of
from nbtune.models.weight_checks import link_of_a_model
from nbtune.untrusted import leads_out

if TYPE_CHECKING:
    import torch

    from nbtune.spec import RunSpec

_FORM = 2  # of what is written: another one is made anew
_SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "README.md")


def with_new_tokens(spec: "RunSpec") -> "RunSpec":
    """Return a spec whose model is the folder that knows its new tokens, and whose adapter trains their rows; a spec
    that has none as it is.

    Raises:
        SpecError, HubError: the tokens are none, are known already, or the model cannot be given more.
    """
    adapter = spec.adapter
    if not adapter.grows or base_of(spec.model) is not None:
        return spec
    with NbtuneError.about("adapter", "new_tokens"):
        if spec.tokenizer is not None or spec.model.startswith("var:"):
            raise SpecError(
                "new tokens are given to the model's own tokenizer, and another one, or a model in memory, was named",
                fix="give them to it yourself: `tokenizer.add_tokens`, `model.resize_token_embeddings`",
            )
        folder = folder_of(
            spec.model, adapter.new_tokens, adapter.new_special_tokens, trust_remote_code=spec.trust_remote_code
        )
    more: dict[str, Any] = {"model": str(folder)}
    if adapter.type != "full":
        numbers = sorted({*adapter.trainable_token_indices, *(about_of(folder) or {})["numbers"]})
        more["adapter"] = adapter.model_copy(update={"trainable_token_indices": tuple(numbers)})
    return spec.model_copy(update=more)


def folder_of(
    model: str, tokens: tuple[str, ...], special: tuple[str, ...] = (), *, trust_remote_code: bool = False
) -> Path:
    """Return the folder of a model with these tokens, made where it is not there yet; its weights come later.

    Args:
        model: ``nbtune/tiny``, a folder, a GGUF file, or a Hub id.
        tokens: such as texts hold.
        special: such as chat templates hold: what looks like one in a text stays letters.
        trust_remote_code: let the model's own Python run.

    Raises:
        SpecError, HubError: see `with_new_tokens`.
        DataError: the cache cannot be written.
    """
    from nbtune.models.loading import resolve

    base = resolve(model, weights=False, trust_remote_code=trust_remote_code)
    code = sorted(base.glob("*.py")) if trust_remote_code else []  # as it is now; and none, if nobody allows it
    folder = cache_folder() / "tokens" / _key(base, tokens, special, code)
    if about_of(folder) is not None:
        return folder
    with disk_errors(DataError, place=str(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = hidden(folder, "tmp")
        fresh.mkdir()
        try:
            _describe(model, base, tokens, special, fresh, trust_remote_code)
            _take_code(code, fresh)
            publish_folder(fresh, folder, FILE)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _key(base: Path, tokens: tuple[str, ...], special: tuple[str, ...], code: list[Path]) -> str:
    names = [path.name for path in code]
    digest = hashlib.sha256(json.dumps([_FORM, str(base), tokens, special, names]).encode())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", *names):
        with suppress(OSError):
            digest.update((base / name).read_bytes())
    return digest.hexdigest()[:32]


def _take_code(code: list[Path], folder: Path) -> None:
    """Copy a model's own Python files."""
    for path in code:
        if leads_out(path, path.parent):
            raise link_of_a_model(path)
        shutil.copyfile(path, folder / path.name)


def _describe(
    model: str, base: Path, tokens: tuple[str, ...], special: tuple[str, ...], folder: Path, trust: bool
) -> None:
    """Write tokenizer and config, and what the weights will be."""
    from tokenizers import AddedToken

    from nbtune.models.config_facts import headers_of
    from nbtune.models.embedded import NAME as EMBEDDED
    from nbtune.models.loading import load_tokenizer, outline
    from nbtune.models.stored_names import Loading
    from nbtune.models.tokenizer_files import make_portable

    tokenizer = load_tokenizer(model, trust_remote_code=trust)
    known = tokenizer.get_vocab()
    for token in (*tokens, *special):
        if token in known:
            raise SpecError(
                f"the tokenizer knows `{token}` already, as number {known[token]}",
                fix=f"Write `trainable_token_indices: [{known[token]}]`, which trains its embedding.",
            )
    before = max(known.values(), default=-1) + 1
    for names, apart in ((tokens, False), (special, True)):
        added = [AddedToken(name, special=apart, normalized=False) for name in names]
        tokenizer.add_tokens(added, special_tokens=apart)
    numbers = [tokenizer.convert_tokens_to_ids(name) for name in (*tokens, *special)]
    shape: Any = outline(model, dtype=_float32(), device="meta", trust_remote_code=trust)
    wide = _wide(shape, model)
    rows = next(iter(wide.values()))
    more = _rounded(max(rows, max(numbers) + 1), rows)
    headers = headers_of(model)
    loading = Loading(shape)
    grown = [stored for stored in headers if _is_in(loading.name_of(stored), wide)]
    if headers and not grown:
        raise SpecError(f"the embeddings of {model} are not in its files as they are", fix="Drop `new_tokens`.")
    for pattern in _SMALL:
        for path in base.glob(pattern):
            if not path.name.endswith(INDEX):
                shutil.copyfile(path, folder / path.name)
    tokenizer.save_pretrained(folder)
    make_portable(folder)
    _write_config(folder / "config.json", rows, more)
    for name in grown:
        headers[name] = {**headers[name], "shape": [more, *headers[name]["shape"][1:]]}
    here = model != EMBEDDED and Path(model).expanduser().exists()
    about = {
        "base": str(Path(model).expanduser().absolute()) if here else model,
        "name": Path(model).name if here else model,
        "numbers": numbers,
        "known": before,
        "rows": more,
        "grown": grown,
        "headers": headers,
    }
    (folder / FILE).write_text(json.dumps(about), encoding="utf-8")


def _float32() -> "torch.dtype":
    import torch

    return torch.float32


def _wide(shape: Any, model: str) -> dict[str, int]:
    """Return the weights that have a row a token, with how many rows they have.

    Raises:
        SpecError: something else of the model knows the number of tokens.
    """
    embedding = shape.get_input_embeddings()
    ends = [embedding, shape.get_output_embeddings()]
    rows = embedding.weight.shape[0]
    own = {id(p) for module in ends if module is not None for p in module.parameters()}
    named = [(name, p) for name, p in shape.named_parameters(remove_duplicate=False)]
    found = {name: rows for name, p in named if id(p) in own and p.shape[0] == rows}
    others = [key for key in vars(shape.config.get_text_config()) if key.startswith("vocab_size_")]
    if others:
        raise SpecError(f"{model} has a row a token elsewhere too (`{others[0]}`)", fix="Drop `new_tokens`.")
    return found


def _is_in(name: tuple[str, Any], wide: dict[str, int]) -> bool:
    return name[1] is None and name[0] in wide


def _rounded(rows: int, before: int) -> int:
    """Return a number of rows as round as the one before: products of odd ones are slow."""
    step = next(step for step in (64, 8, 1) if before % step == 0)
    return -(-rows // step) * step


def _write_config(path: Path, rows: int, more: int) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))

    def changed(part: Any) -> Any:
        if isinstance(part, dict):
            return {k: more if k == "vocab_size" and v == rows else changed(v) for k, v in part.items()}
        return part

    path.write_text(json.dumps(changed(config), indent=2) + "\n", encoding="utf-8")
