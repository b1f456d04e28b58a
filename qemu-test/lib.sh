# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=sh
# Helpers of the scenarios; runs in the guest. Plain sh, because init uses it too.

# In a scenario (bash) every unforeseen failure ends it.
if [ -n "${BASH_VERSION:-}" ]; then
	set -euE -o pipefail
	# shellcheck disable=SC3047,SC3028
	trap 'echo "FAILED: line $LINENO of $0: $BASH_COMMAND"' ERR
fi

ok() { echo "ok: $*"; }
die() {
	echo "FAILED: $*"
	exit 1
}
note() { echo "-- $*"; }
# result WORDS: shown in the summary, too
result() { echo "<4>### presnap note $*" >/dev/kmsg; }

# eq GOT WANT WHAT
eq() { [ "$1" = "$2" ] || die "$3: got '$1', want '$2'"; }

# log_mark: marks the kernel's log; log_since shows what it has said since the last mark.
_mark=0
log_mark() {
	_mark=$((_mark + 1))
	echo "<7>presnap-mark-$$-$_mark-" >/dev/kmsg
}
log_since() { dmesg | sed "1,/presnap-mark-$$-$_mark-/d"; }

# expect_fail [-m TEXT] COMMAND...: the command must fail; with -m its output or the kernel's log must contain TEXT.
expect_fail() {
	_text=''
	if [ "$1" = -m ]; then
		_text=$2
		shift 2
	fi
	log_mark
	if _said=$("$@" 2>&1); then die "should have failed: $*"; fi
	[ -n "$_text" ] || return 0
	case $_said in *"$_text"*) return 0 ;; esac
	_said="$_said
$(log_since)"
	case $_said in
	*"$_text"*) ;;
	*) die "failed, but without the words '$_text': $*
$_said" ;;
	esac
}

# wait_for SECONDS COMMAND...: until the command succeeds; on a slow kernel for $SLOW times as long
wait_for() {
	_until=$(($(cut -d. -f1 /proc/uptime) + $1 * ${SLOW:-1}))
	shift
	while ! "$@" >/dev/null 2>&1; do
		[ "$(cut -d. -f1 /proc/uptime)" -lt "$_until" ] || die "waited in vain for: $*"
		sleep 0.1
	done
}

# load: our module, once
load() {
	[ -d /sys/module/dm_presnap ] || insmod /presnap/dm-presnap.ko "$@" || die "dm-presnap.ko does not load"
}

# sectors DEV
sectors() { blockdev --getsz "$1"; }

# serial_disk SERIAL: the NVMe disk with that serial
serial_disk() { readlink -f "/presnap/disk/$1"; }

# null_blk NAME MEGABYTES [COMPLETION_NSEC]: a memory-backed disk /dev/NAME; with a time each I/O takes so long.
null_blk() {
	[ -d /sys/module/null_blk ] || modprobe null_blk nr_devices=0 || die "no null_blk"
	_d=/sys/kernel/config/nullb/$1
	_m=${2%M}
	case $_m in *G) _m=$((${_m%G} * 1024)) ;; esac
	mkdir "$_d" || die "null_blk $1 exists"
	echo "$_m" >"$_d/size"
	echo 4096 >"$_d/blocksize"
	echo 64 >"$_d/hw_queue_depth"
	echo 1 >"$_d/discard"
	if [ -n "${3:-}" ]; then
		echo 2 >"$_d/irqmode"
		echo "$3" >"$_d/completion_nsec"
	else
		echo 0 >"$_d/irqmode"
	fi
	echo 1 >"$_d/memory_backed"
	echo 1 >"$_d/power" || die "null_blk $1 does not start"
}

# now_ms: milliseconds since boot
now_ms() { awk '{printf "%d\n", $1 * 1000}' /proc/uptime; }
