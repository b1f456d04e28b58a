# SPDX-License-Identifier: GPL-2.0-only
# nvme: 8M:origin 16M:region
# kernel: debug
# file: qemu-test/inject.sh
# timeout: 900
# allow: page allocation failure|kmemleak: Cannot allocate a scan area
# Every allocation on the way of loading the module and of a table fails once: nothing breaks or leaks, it says why, the origin keeps its
# content, and the next try works.
. /presnap/lib.sh
. /presnap/inject.sh
O=$(serial_disk origin) R=$(serial_disk region)
N=$(sectors "$O")
TABLE="0 $N presnap $O $R"
dd if=/dev/urandom of="$O" bs=1M count=$((N / 2048)) oflag=direct status=none
dd if="$O" of=/tmp/want bs=1M iflag=direct status=none

# The module itself. Its own functions are not there yet: what is allocated on behalf of its initialisation.
of_kernel do_init_module
# insmod would try again by another system call.
insert() { strace -qq -o /dev/null -e trace=init_module -e inject=init_module:error=ENOMEM insmod /presnap/dm-presnap.ko; }
inserted() {
	if [ "$1" = 0 ]; then
		dmsetup targets | grep -q '^presnap ' && [ -c /dev/presnap ] || return 1
		rmmod dm_presnap
	else
		[[ $said == *'annot allocate memory'* ]] || return 1
		[ ! -d /sys/module/dm_presnap ] || return 1
		! dmsetup targets | grep -q '^presnap' || return 1
	fi
}
one_by_one "loading the module" - insert inserted

load
presnap format --origin "$O" "$R" --force >/dev/null 2>&1
of_module
create() { dmsetup create p --table "$TABLE"; }
S=/sys/block/dm-0/presnap
files() { [ -e $S/stats/hits ] && [ -e $S/stats/predictions_right ] && [ -e $S/model/vectors ]; }
declare -A words=()
created() {
	if [ "$1" = 0 ]; then
		if ! files; then
			[[ $log == *'cannot make the files in sysfs'* ]] || { why="no files, and no words"; return 1; }
			dmsetup suspend p
			dmsetup resume p
			files || { why="no files after resume"; return 1; }
		fi
		dd if=/tmp/want of=/dev/mapper/p bs=64k count=2 skip=$((n % 60)) seek=$((n % 60)) oflag=direct conv=notrunc status=none
		case $(dmsetup status p) in *" rw "*) ;; *) why="status: $(dmsetup status p)" && return 1 ;; esac
		dmsetup remove p
	else
		# device-mapper: table: 253:0: presnap: <words> (-ENOMEM)
		local re='device-mapper: table: [^ ]*: presnap: ([^'$'\n'']*) \(-[A-Z0-9]*\)'
		[[ $log =~ $re ]] && [ "${BASH_REMATCH[1]}" != "Unknown error" ] || { why="no words" && return 1; }
		words[${BASH_REMATCH[1]}]=$((${words[${BASH_REMATCH[1]}]:-0} + 1))
		[ ! -e /dev/mapper/p ] && [ ! -e /sys/block/dm-0 ] || { why="something is left" && return 1; }
	fi
	# A table that could not be loaded leaves the region as it was.
	[[ $log != *'was not closed in order'* ]] || { why="the region was left open" && return 1; }
}
one_by_one "loading a table" - create created
cmp "$O" /tmp/want || die "the origin has changed"

# Once more without memory in one piece: large arrays are made of pages then, and fail as a whole only so. (Two pages in one
# piece there must be: with debugging, the kernel's own small objects need them.)
scattered() {
	echo 2 >$P/min-order
	echo -1 >$P/times
	echo 100 >$P/probability
	create
	local rc=$?
	echo 0 >$P/probability
	return $rc
}
scattered || die "a table does not load without memory in one piece: $(dmesg)"
dmsetup remove p
one_by_one "loading a table into scattered memory" - scattered created
cmp "$O" /tmp/want || die "the origin has changed"

# Single pages: the first, the second, the fourth, ... (about: the count of them cannot be known).
pages=0 n=1
echo 0 >$P/min-order
while :; do
	echo 1 >$P/times
	echo $n >$P/interval
	echo 100 >$P/probability
	dmesg -c >/dev/null
	rc=0
	create >/tmp/said 2>&1 || rc=$?
	echo 0 >$P/probability
	said=$(</tmp/said) log=$(dmesg)
	created $rc || die "a table with page $n failing: $why
$said
$log"
	read -r times <$P/times
	[ "$times" = 0 ] || break
	pages=$((pages + 1)) n=$((n * 2))
done
ok "loading a table: $pages pages could not be had"
cmp "$O" /tmp/want || die "the origin has changed"

leaks_here "loading"
for w in "${!words[@]}"; do note "${words[$w]} times: $w"; done
result "$((injected + pages)) allocation failures injected"
