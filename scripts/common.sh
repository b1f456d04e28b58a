# SPDX-License-Identifier: GPL-2.0-only
# Sourced by every script here: paths, messages, locks.
# shellcheck shell=bash

set -euo pipefail
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin # users have not always got them

PRESNAP_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PRESNAP_CACHE=${PRESNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/presnap}
mkdir -p "$PRESNAP_CACHE"
PRESNAP_CACHE=$(cd "$PRESNAP_CACHE" && pwd -P)
PRESNAP_JOBS=${PRESNAP_JOBS:-$(nproc)}
export PRESNAP_TOP PRESNAP_CACHE PRESNAP_JOBS

# A name for the messages of this script: say "text" prints "[name +12s] text".
PRESNAP_NAME=${PRESNAP_NAME:-$(basename "$0")}
SECONDS=0

say() { printf '[%s +%ds] %s\n' "$PRESNAP_NAME" "$SECONDS" "$*" >&2; }
die() {
	printf '[%s] error: %s\n' "$PRESNAP_NAME" "$1" >&2
	shift
	for line in "$@"; do printf '    %s\n' "$line" >&2; done
	exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# quiet LOG COMMAND...: output goes to LOG; on failure its tail is shown.
quiet() {
	local log=$1
	shift
	mkdir -p "$(dirname "$log")"
	if ! "$@" >"$log" 2>&1 </dev/null; then
		tail -n "${QUIET_TAIL:-40}" "$log" >&2
		die "failed: ${QUIET_WHAT:-$1}" "the whole log: $log"
	fi
}

# lock NAME: one process at a time; held until this script exits. A second one waits and says so.
lock() {
	local file="$PRESNAP_CACHE/.lock-$1"
	exec {PRESNAP_LOCK}>"$file"
	if ! flock -n "$PRESNAP_LOCK"; then
		say "waiting for another process that holds $file"
		flock "$PRESNAP_LOCK"
	fi
}

# link NAME TARGET: the stable name $PRESNAP_CACHE/NAME points to TARGET, switched atomically.
link() {
	ln -sfn "$2" "$PRESNAP_CACHE/.$1.$$"
	mv -fT "$PRESNAP_CACHE/.$1.$$" "$PRESNAP_CACHE/$1"
}

# remove PATH...: rm -rf that never follows a mount. A half-made root may have the host's /dev, /proc or /sys
# mounted in it, if what made it was killed.
remove() {
	local p
	for p in "$@"; do
		[ -e "$p" ] || [ -L "$p" ] || continue
		if [ ! -L "$p" ]; then
			p=$(realpath "$p")
			case $p in
			"$PRESNAP_CACHE"/?* | "$PRESNAP_TOP"/build/?*) ;;
			*) die "will not remove $p: it is neither in the cache nor in build/" ;;
			esac
			if awk -v p="$p" '$5 == p || index($5, p "/") == 1 {found = 1} END {exit !found}' /proc/self/mountinfo; then
				die "will not remove $p: something is mounted in it" "see: grep '$p' /proc/self/mountinfo"
			fi
		fi
		rm -rf --one-file-system "$p"
	done
}
