# SPDX-License-Identifier: GPL-2.0-only
#
# run.sh RUN...: the benchmark's part in the guest, see scripts/bench. RUN is SYSTEM:VARIANT:LOAD[:KEY=VALUE]...
# Each result is one line on the console, `@@ {...}`, which bench/report.py reads.
#
# The course of a run, in seconds of the guest's clock: the load begins at 0; 0.75 to 1.5 counts as "before"; at 1.5
# a snapshot with a known T0 is requested (only presnap with a predictor); T0 is at 5.25; the 2 s from there are "after".
. /presnap/lib.sh
[ ! -e /presnap/bench.conf ] || . /presnap/bench.conf
ORIGIN_MIB=${ORIGIN_MIB:-256}
STORE_MIB=${STORE_MIB:-448}
PREFILL=${PREFILL:-1}
NSEC=${NSEC:-80000}
now_us() { echo "${EPOCHREALTIME/./}"; }
# sleep_us MICROSECONDS, without a process
mkfifo /tmp/never
exec {NEVER}<>/tmp/never
sleep_us() { read -rt "$(($1 / 1000000)).$(printf %06d $(($1 % 1000000)))" -u "$NEVER" _ || :; }
# written DISK: bytes written since boot
written() {
	local w
	read -ra w <"/sys/block/$1/stat"
	echo $((${w[6]} * 512))
}
# fill DEV [OPTION]...: writes all of it. io_uring lets go of the device some time after its process has ended.
fill() {
	presnap-load fill "$@" >/dev/null
	sleep_us 50000
}
# s MILLISECONDS: as seconds
s() { printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)); }
# ios DISK: writes completed
ios() {
	local w
	read -ra w <"/sys/block/$1/stat"
	echo "${w[4]}"
}
# disk NAME: the kernel's name of a dm device
disk() { echo "dm-$(dmsetup info -c --noheadings -o minor "$1")"; }

# The disks: origin, store (region, cow device or pool data) and meta (of the pool). Written once before anything is
# measured, because null_blk allocates memory at the first write of a page.
null_blk origin "$ORIGIN_MIB" "$NSEC"
null_blk store "$STORE_MIB" "$NSEC"
null_blk meta 16 "$NSEC"
O=/dev/origin R=/dev/store M=/dev/meta
[ "$PREFILL" = 0 ] || for d in $O $R $M; do fill $d; done
note "disks ready after $(now_ms) ms"
N=$(sectors $O)

# What happens at T0, for systems other than presnap. Says how long writers were held.
at_t0() {
	cat >/tmp/t0 <<END
t() { echo "\${EPOCHREALTIME/./}"; }
a=\$(t)
dmsetup suspend $1
$2
dmsetup resume $1
echo held=\$((\$(t) - a))
END
}

# setup SYSTEM VARIANT: makes the device $DEV; CMD is run at T0, WITHIN says how many milliseconds before T0 a snapshot is requested
setup() {
	DEV=/dev/mapper/x CMD=true WITHIN=0 EXTRA=''
	case $1 in
	raw) DEV=$O ;;
	dm-linear) dmsetup create x --table "0 $N linear $O 0" ;;
	dm-snapshot-*)
		chunk=$((${1#dm-snapshot-} * 2))
		dd if=/dev/zero of=$R bs=64k count=1 oflag=direct status=none
		dmsetup create x --table "0 $N snapshot-origin $O"
		dmsetup create s --notable
		dmsetup load s --table "0 $N snapshot $O $R P $chunk"
		at_t0 x "dmsetup resume s"
		CMD="bash /tmp/t0"
		;;
	dm-thin-64)
		dd if=/dev/zero of=$M bs=64k count=1 oflag=direct status=none
		dmsetup create pool --table "0 $(sectors $R) thin-pool $M $R 128 0 1 skip_block_zeroing"
		dmsetup message pool 0 create_thin 0
		dmsetup create x --table "0 $N thin /dev/mapper/pool 0"
		fill $DEV
		at_t0 x "dmsetup message pool 0 'create_snap 1 0'"
		CMD="bash /tmp/t0"
		;;
	presnap)
		presnap format --force --origin $O $R >/dev/null 2>&1
		case $2 in
		delta-*) scope=delta ;;
		image-*) scope=image ;;
		esac
		dmsetup create x --table "0 $N presnap $O $R 2 scope $scope"
		S=/sys/block/$(disk x)/presnap
		case $2 in
		*-off)
			echo off >"$S/predictor"
			CMD="dmsetup message x 0 snapshot"
			;;
		*-model)
			EXTRA=ewma
			echo ewma >"$S/predictor"
			local model=/presnap/$3.psm
			[ -e "$model" ] || model=/presnap/model.psm
			if [ -e "$model" ]; then
				dd if="$model" of="$S/model/blob" bs=64k status=none
				if echo 1 >"$S/model/commit"; then
					echo model >"$S/predictor"
					EXTRA="$(basename "$model" .psm) $(cat "$S/model/state")"
				else
					EXTRA="ewma (model refused: $(cat "$S/model/error"))"
				fi
			fi
			WITHIN=$((T0_MS > 1500 ? T0_MS - 1500 : T0_MS / 2))
			;;
		esac
		;;
	*) die "unknown system $1" ;;
	esac
}

teardown() {
	local d
	sleep_us 50000
	for d in x s pool; do
		[ ! -b "/dev/mapper/$d" ] && ! dmsetup info "$d" >/dev/null 2>&1 || dmsetup remove "$d"
	done
}

# run SYSTEM VARIANT LOAD [KEY=VALUE]...
run() {
	local system=$1 variant=$2 load=$3 kv T0_MS=5250 AFTER_MS=2000 SPAN='' DIRTY='' KNOBS='' BUDGET='' extra=() state='' status='' held='' id=''
	shift 3
	for kv in "$@"; do printf -v "${kv%%=*}" '%s' "${kv#*=}"; done
	setup "$system" "$variant" "$load"
	local k
	for k in $KNOBS; do echo "${k#*/}" >"$S/${k%%/*}"; done
	[ -z "$SPAN" ] || extra+=(--span "$SPAN")
	# A delta of this size, written before the load begins.
	[ -z "$DIRTY" ] || fill $DEV --span "$DIRTY"
	local end=$((T0_MS + AFTER_MS))
	# Without snapshots there is no difference between before and after.
	if [ "$system" = raw ] || [ "$system" = dm-linear ]; then T0_MS=1500 end=2250; fi
	local store0 meta0 dev0 name
	name=origin
	[ "$system" = raw ] || name=$(disk x)
	store0=$(written store) meta0=$(written meta) dev0=$(written "$name")
	local started
	started=$(ios "$name")
	presnap-load "$load" $DEV --seconds "$(s $end)" --at "$(s $T0_MS)" --command "$CMD" --after 2 --warmup 0.2 --window-ms 750 \
		--max-ios 800000 "${extra[@]}" >/tmp/result 2>/tmp/error &
	local pid=$! begin
	if [ $WITHIN != 0 ]; then
		# T0 shall fall right behind a window: the request goes out when the load has run for 1.5 s.
		while [ "$(ios "$name")" = "$started" ]; do sleep_us 1000; done
		begin=$(now_us)
		sleep_us $(((T0_MS - WITHIN) * 1000 + 1000))
		held=$(dmsetup message x 0 snapshot within $WITHIN)
		held="requested_at_us=$(($(now_us) - begin))"
	fi
	wait $pid || { cat /tmp/error; note "FAILED run $system $variant $load"; }
	local store1 meta1 dev1
	store1=$(written store) meta1=$(written meta) dev1=$(written "$name")
	case $system in
	presnap)
		id=1
		local tries=0
		state=$(dmsetup message x 0 state $id)
		local unsealed=0
		until case $state in *sealed* | *dropped* | *unknown*) true ;; *) false ;; esac; do
			unsealed=1
			tries=$((tries + 1))
			[ $tries -lt 100 ] || break
			sleep_us 100000
			state=$(dmsetup message x 0 state $id)
		done
		[ $unsealed = 0 ] || store1=$(written store)
		status=$(dmsetup status x)
		status="$status; $(cd "$S/stats" && grep . -- * | tr '\n' ' ')"
		;;
	dm-snapshot-*) status=$(dmsetup status s) ;;
	dm-thin-64) status=$(dmsetup status pool) ;;
	esac
	printf '@@ {"origin_mib":%d,"system":"%s","variant":"%s","load":"%s","options":"%s","predictor":"%s","held":"%s","state":"%s","status":"%s","store_bytes":%d,"meta_bytes":%d,"foreground_bytes":%d,"result":%s}\n' \
		"$ORIGIN_MIB" "$system" "$variant" "$load" "$*" "$EXTRA" "$held" "$state" "$status" $((store1 - store0)) $((meta1 - meta0)) $((dev1 - dev0)) \
		"$(cat /tmp/result 2>/dev/null || true)"
	teardown
}

# train LOAD: records a few seconds of a load, other places than those that are measured, for a model to be trained on.
train() {
	setup presnap delta-off "$1"
	presnap-load "$1" $DEV --seconds 12 --seed 77 >/dev/null &
	local pid=$!
	presnap trace record $DEV --new-only --seconds 12 --output "/out/$1.trace" >/dev/null 2>&1
	wait $pid
	note "recorded $(wc -c <"/out/$1.trace") bytes of $1"
	teardown
}

case " $* " in *presnap:* | *train:*) load ;; esac
for r in "$@"; do
	IFS=: read -ra words <<<"$r"
	note "run $r"
	case ${words[0]} in
	train) (train "${words[1]}") || { note "FAILED $r"; teardown || :; } ;;
	*) (run "${words[@]}") || { note "FAILED $r"; teardown || :; } ;;
	esac
done
