# What the scenarios share; each sources it first. A machine of its own with one device, mounted for the time of the scenario:
#
#   machine ADVERTISED REAL [SECTOR] mounts it, in place of the one before
#   set_fault NAME ATTRIBUTE=VALUE…  as the kernel's failcmd does, through fail_cram_NAME/
#   register NAME                    prints one of the device's
#   expect A OPERATOR B WHAT         OPERATOR is one of test(1)'s; WHAT is printed either way
#   writer ARGUMENTS                 writer.py on that device
#
# A function leave() that a scenario defines is called at its end, however that comes, while the machine is still there.
# They end with 0, with 1 where an expectation failed, or with 77 (skip REASON) where this host cannot do it.
set -euo pipefail
top=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
cram_emu=$top/.venv/bin/cram-emu
failures=0

skip() {
	echo "skipped: $*"
	exit 77
}

note() { printf '  %s\n' "$*"; }

[ -x "$cram_emu" ] || "$top/scripts/setup"

machine() {
	local of=(--advertised "$1" --real "$2")
	[ -z "${where:-}" ] || unmount
	where=$(mktemp -d)
	trap finish EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	if [ $# -gt 2 ]; then
		make_device "/dev/shm/${where##*/}.device" "$@"
		of=(--device "/dev/shm/${where##*/}.device")
	fi
	"$cram_emu" mount --daemon "${of[@]}" "$where" >/dev/null 2>"$where.said" ||
		skip "no machine can be mounted here: $(tail -1 "$where.said")"
	device=$where/sys/kernel/debug/cram_device/mem0
	note "a device of $1 that has $2${3:+, in sectors of $3}"
}

# `mount` makes none whose sectors are not the usual ones.
make_device() {
	"$top/.venv/bin/python" -c 'import sys, cram_emu
path, advertised, real, sector = sys.argv[1:]
cram_emu.Device(advertised, real, sector=sector, path=path).close()' "$@"
}

unmount() {
	if [ -d "$where/sys" ]; then umount "$where" || true; fi
	rmdir "$where" 2>/dev/null || true
	rm -f "$where.said" "/dev/shm/${where##*/}.device"
}

leave() { :; }

finish() {
	local code=$?
	# Another one would end it half way.
	trap '' INT TERM
	leave || true
	unmount
	if [ "$code" -eq 0 ] && [ "$failures" -gt 0 ]; then exit 1; fi
	exit "$code"
}

set_fault() {
	local name=$1 setting
	shift
	for setting; do
		echo "${setting#*=}" >"$device/fail_cram_$name/${setting%%=*}"
	done
	note "fail_cram_$name: $*"
}

register() { cat "$device/$1"; }

expect() {
	if [ "$1" "$2" "$3" ]; then
		note "$4: $1"
	else
		note "$4: $1, expected $2 $3"
		failures=$((failures + 1))
	fi
}

writer() { "$top/.venv/bin/python" "$top/scripts/faults/writer.py" "$(register path)" "$@"; }
