# Sourced by the other scripts: changes to the repository root, makes .venv when it is absent and
# installs what is needed there. CCAFL_EXTRA=cuda12, cuda13 or tpu picks an accelerator (default:
# CPU); CCAFL_PYTHON names the interpreter that makes .venv (default: python3). A link
# named .venv is used as it is: nothing is installed where it leads.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras="test${CCAFL_EXTRA:+,$CCAFL_EXTRA}"
stamp=.venv/installed
wanted="$extras $(cksum <pyproject.toml)"
if [ -L .venv ] && [ -x .venv/bin/python ]; then
  # Installing would point the environment of another checkout at this one's code.
  echo "using .venv as it is: a link to $(readlink .venv)"
elif [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
  if [ ! -x .venv/bin/python ]; then
    "${CCAFL_PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "error: Python 3.11 or newer is needed; name one with CCAFL_PYTHON=/path/to/python3.11" >&2
      exit 2
    }
    "${CCAFL_PYTHON:-python3}" -m venv .venv
  fi
  echo "installing into .venv (extras: $extras)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
  echo "$wanted" >"$stamp"
fi
python=.venv/bin/python
if [ -z "${CCAFL_EXTRA:-}" ]; then
  export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
fi
