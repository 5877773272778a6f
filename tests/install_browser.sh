#!/bin/sh
# Finds a Chromium for the tests of the built site, or installs one. Prints its path on the last line.
# axe-core comes with the Python package axe-playwright-python (extra `test`), so only the browser is missing.
# Set CHROMIUM to use a browser of your own.
set -eu

find_browser() {
    for name in ${CHROMIUM:-} chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$name" >/dev/null 2>&1; then
            command -v "$name"
            return 0
        fi
    done
    return 1
}

if find_browser; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "No Chromium found, and no apt-get to install it with. Install Chromium or Chrome," >&2
    echo "or set CHROMIUM to the path of one." >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    sudo=""
elif sudo -n true 2>/dev/null; then
    sudo="sudo -n"
else
    echo "No Chromium found, and only root can install it: sudo apt-get install chromium" >&2
    exit 1
fi
# Keep apt's talk off stdout: the path is the only thing printed there.
$sudo env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium fonts-liberation >&2
find_browser
