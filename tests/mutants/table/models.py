"""Models as they come: GGUF files that are tuned, what is said of weights."""

from tests.mutants.mutant import mutant

_HEADER, _KEYS = "models/test_gguf_header.py", "models/test_gguf_values.py"

MODELS = (
    mutant(
        "a-weight-ends-behind-its-file",
        "models/gguf_file/header.py",
        "if begin + offset + size > self.size:",
        "if begin + offset > self.size:",
        _HEADER,
    ),
    mutant(
        "an-alignment-is-any-number",
        "models/gguf_file/header.py",
        "if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:",
        "if not isinstance(alignment, int):",
        _HEADER,
    ),
    mutant(
        "a-row-is-no-whole-number-of-blocks",
        "models/gguf_file/header.py",
        "if not 0 < numbers < _MOST_NUMBERS or not shape or shape[-1] % block:",
        "if not 0 < numbers < _MOST_NUMBERS or not shape or numbers % block:",
        _HEADER,
    ),
    mutant(
        "a-part-is-any-part",
        "models/gguf_file/header.py",
        ' or said.get("split.no", index) != index:',
        ":",
        _HEADER,
    ),
    mutant(
        "a-number-in-fp32-has-all-its-digits",
        "models/gguf_file/header.py",
        'return _shortest(value) if form == "f" else value',
        "return value",
        _HEADER,
    ),
    mutant(
        "yes-is-one",
        "models/gguf_file/header.py",
        "if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40:",
        "if isinstance(value, int) and 0 <= value < 2**40:",
        _KEYS,
    ),
    mutant(
        "layers-that-tell-nothing-are-not-missed",
        "models/gguf_file/keys.py",
        "if len(listed) < self.layers or not all(",
        "if not all(",
        _KEYS,
    ),
    mutant(
        "the-rows-of-a-weight-begin-at-its-first",
        "models/gguf_file/numbers.py",
        "file.seek(stored.start + start * width)",
        "file.seek(stored.start)",
        _HEADER,
    ),
    mutant(
        "kubeflow-limits-no-gpu",
        "engine/job_files.py",
        '{"limits": {"nvidia.com/gpu": job.processes}}',
        '{"limits": {"nvidia.com/gpu": job.nodes}}',
        "engine/test_job_files.py::test_each_word_of_kubeflows_job_stands_where_its_trainer_reads_it",
    ),
    mutant(
        "a-job-tells-its-authors-number",
        "engine/job_files.py",
        "member.uid = member.gid = 0",
        "member.gid = 0",
        "engine/test_job_files.py::test_no_link_of_a_folder_travels_and_no_number_of_its_owner",
    ),
)
