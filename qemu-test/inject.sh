# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Failing chosen allocations (the kernel's fault injection). Runs in the guest, on a debug kernel, after lib.sh.
#
# Allocations are those made on behalf of a range of functions, in whatever task or interrupt: one of these is on the stack.

F=/sys/kernel/debug/failslab
P=/sys/kernel/debug/fail_page_alloc
[ -d $F ] && [ -d $P ] && [ -e $F/require-start ] || die "this kernel has no fault injection"

# The kernel counts allocations, and one fails when the count is a multiple of the interval. The count only ever grows, cannot be
# read, and stands still while there is nothing to fail: so it is known whenever one has failed.
counted=0 armed=0 injected=0

# Stacks are for /tmp/log: what has no level of its own stays off the console, which is slow.
awk '{print $1, 6, $3, $4}' /proc/sys/kernel/printk >/tmp/printk
cat /tmp/printk >/proc/sys/kernel/printk

# Programs start slowly on a debug kernel: what bash can do, it does.
mkfifo /tmp/nap
exec {NAP}<>/tmp/nap
# nap SECONDS
nap() { read -rt "$1" -u "$NAP" || :; }
# message MESSAGE...: sent to the device p
message() { dmsetup message p 0 "$@"; }
# same FILE DEVICE: whether the device holds what the file does
same() { dd if="$2" bs=1M iflag=direct status=none | cmp - "$1"; }
# gone ID: waits until a snapshot is not listed any more
gone() {
	local i
	for ((i = 0; i < 100 * SLOW; i++)); do
		[[ $'\n'$(message list) == *$'\n'"$1 "* ]] || return 0
		nap 0.1
	done
	why="snapshot $1 is still there"
	return 1
}

# of START END: allocations on behalf of the functions from START up to END
of() {
	local d
	for d in $F $P; do
		echo 0 >$d/probability
		echo "$1" >$d/require-start
		echo "$2" >$d/require-end
		echo 32 >$d/stacktrace-depth
		echo N >$d/ignore-gfp-wait
	done
	echo N >$P/ignore-gfp-highmem
	echo 0 >$P/verbose
	echo 2 >$F/verbose
	echo 10000 >$F/verbose_ratelimit_burst
	# What kmemleak allocates for its own account is no matter of ours.
	range_of __alloc_object
	echo "${range% *}" >$F/reject-start
	echo "${range#* }" >$F/reject-end
}
# range_of FUNCTION: sets range, where a function of the kernel begins and ends
range_of() {
	range=$(awk '$2 ~ /[tT]/ {print $1, $3}' /proc/kallsyms | sort |
		awk -v f="$1" 'start && !end && $1 "" != start "" {end = $1} $2 == f {start = $1} END {if (end) print "0x" start, "0x" end}')
	[ -n "$range" ] || die "there is no function $1"
}
# of_module: those of dm_presnap
of_module() {
	local start size
	start=$(cat /sys/module/dm_presnap/sections/.text)
	size=$(awk '$1 == "dm_presnap" {print $2}' /proc/modules)
	of "$start" "$(printf '0x%x' $((start + size)))"
}
# of_kernel FUNCTION: those of a function of the kernel
of_kernel() {
	range_of "$1"
	# shellcheck disable=SC2086
	of $range
}

# arm N: the Nth allocation from now on fails, and no other
arm() {
	armed=$((counted + $1))
	echo $armed >$F/interval
	echo 1 >$F/times
	echo 100 >$F/probability
}
# disarm: sets fired, whether it came to that
disarm() {
	local times
	echo 0 >$F/probability
	fired=0
	read -r times <$F/times
	if [ "$times" = 0 ]; then
		fired=1
		injected=$((injected + 1))
		[ $armed = 1 ] || counted=$armed # an interval of 1 counts nothing
	fi
}
# resync: after one that has not fired: lets allocations fail in a process that does not matter, until one has
resync() {
	local i start end
	start=$(cat $F/require-start) end=$(cat $F/require-end)
	echo 0 >$F/require-start
	echo 0xffffffffffffffff >$F/require-end
	echo 0 >$F/verbose
	echo 1 >$F/task-filter
	echo 100 >$F/probability
	for i in 1 2 3 4 5 6 7 8 9 10; do
		(
			trap - ERR
			set +e
			echo 1 >/proc/self/make-it-fail
			for ((i = 0; i < armed - counted + 10; i++)); do : </proc/version; done
			exit 0
		) 2>/dev/null || :
		[ "$(cat $F/times)" != 0 ] || break
	done
	echo 0 >$F/probability
	[ "$(cat $F/times)" = 0 ] || die "the count of allocations is lost"
	[ $armed = 1 ] || counted=$armed
	echo 0 >$F/task-filter
	echo 2 >$F/verbose
	echo "$start" >$F/require-start
	echo "$end" >$F/require-end
}

# starve: from now on every allocation fails, of objects and of pages, until feed
starve() {
	local d
	echo 0 >$P/min-order
	for d in $F $P; do
		echo 1 >$d/interval
		echo -1 >$d/times
		echo 100 >$d/probability
	done
}
feed() {
	echo 0 >$F/probability
	echo 0 >$P/probability
}

# place: notes where the last failure was, by the functions of our module on the stack
declare -A places=()
place() {
	local line p='' on=0
	while read -r line; do
		case $line in
		*'forcing a failure'*) on=1 ;;
		*' ? '*) ;;
		*'[dm_presnap]'*) [ $on = 0 ] || { line=${line% \[dm_presnap\]*} && p+=" ${line##* }"; } ;;
		esac
	done <<<"$log"
	[ -n "$p" ] || p=' (not told)'
	places[$p]=$((${places[$p]:-0} + 1))
}

# one_by_one WHAT BEFORE DURING AFTER: lets the first allocation in DURING fail, the second in another, and so on until there
# are fewer. BEFORE prepares, AFTER gets DURING's exit code, and looks at its output $said and the kernel's log $log; if it
# fails, $why says more. Past $EACH (400) of them it takes larger and larger steps.
one_by_one() {
	local what=$1 before=$2 during=$3 after=$4 n=0 k=0 rc bad=0 begin told
	begin=$SECONDS told=$SECONDS
	places=()
	dmesg -c >/dev/null
	while :; do
		if [ $n -lt "${EACH:-400}" ]; then n=$((n + 1)); else n=$((n + 1 + n / ${GROW:-50})); fi
		[ $((SECONDS - told)) -lt 60 ] || { told=$SECONDS && note "$what: allocation $n"; }
		if [ "$before" != - ]; then
			$before
			dmesg -c >/dev/null
		fi
		arm $n
		rc=0 why=''
		$during >/tmp/said 2>&1 || rc=$?
		disarm
		said=$(</tmp/said)
		dmesg -c >/tmp/log
		log=$(</tmp/log)
		[ $fired = 0 ] || place
		[ $rc = 0 ] || bad=$((bad + 1))
		$after $rc || die "$what, allocation $n failing: $why
$said
$log"
		[ $fired = 1 ] || break
		k=$((k + 1))
	done
	resync
	[ $rc = 0 ] || die "$what fails without a failing allocation: $said
$log"
	[ $k -gt 0 ] || die "$what: there was no allocation to fail"
	ok "$what: $k allocation failures injected at ${#places[@]} places, of up to $((n - 1)) allocations; it failed $bad times, each time with words ($((SECONDS - begin)) s)"
}

# leaks_here: looks for leaks while the module is loaded, so that they have names
leaks_here() {
	local out
	out=$(sh /presnap/leaks 2>&1 || :)
	[ "$(tail -n 1 <<<"$out")" = 0 ] || die "leaks after $1: $out"
}
