#!/bin/sh
# demo.sh BUILD: compiles this project twice through cached-cc, with a daemon of its own on the
# default backend: cold, and warm after a kill -9. Leaves neither a process nor a file behind.
set -eu

build=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
work=$(mktemp -d "${TMPDIR:-/tmp}/liara-demo-XXXXXX")
daemon='' job=''

cleanup() {
    trap - EXIT INT TERM HUP
    for process in $job $daemon; do
        kill "$process" 2>/dev/null || true
    done
    wait
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# What make passes on belongs to another make.
unset MAKEFLAGS MAKELEVEL MFLAGS
export LIARA_CACHE_SOCKET="$work/socket" LIARA_CACHE_CLI="$build/liara-cache-cli"
export CACHED_CC_LOG="$work/log"

start_daemon() {
    "$build/liara-cached" --config="$work/conf" --socket="$work/socket" \
        --directory="$work/store" 2>>"$work/daemon.log" &
    daemon=$!
    for _ in $(seq 100); do
        if "$LIARA_CACHE_CLI" ping >/dev/null 2>&1; then
            return
        fi
        sleep 0.1
    done
    echo "demo: the daemon does not answer:" >&2
    cat "$work/daemon.log" >&2
    exit 1
}

# compile LABEL: builds everything anew and prints a line of the table.
compile() {
    : >"$CACHED_CC_LOG"
    begin=$(date +%s%N)
    make -s -j8 BUILD="$work/build" CC="$PWD/conf/examples/cached-cc cc" all \
        >"$work/make.log" 2>&1 &
    job=$!
    wait "$job" || {
        cat "$work/make.log" >&2
        exit 1
    }
    job=''
    milliseconds=$((($(date +%s%N) - begin) / 1000000))
    hits=$(grep -c '^hit ' "$CACHED_CC_LOG" || true)
    misses=$(grep -c '^miss ' "$CACHED_CC_LOG" || true)
    rm -rf "$work/build"
    printf '%-42s %4d.%d  %5d  %6d\n' "$1" $((milliseconds / 1000)) \
        $((milliseconds % 1000 / 100)) "$hits" "$misses"
}

: >"$work/conf"
start_daemon
printf '%-42s %6s  %5s  %6s\n' "8 compilers at once through cached-cc" seconds hits misses
compile "cold, with an empty cache"
cold=$milliseconds
"$LIARA_CACHE_CLI" persist >/dev/null
kill -9 "$daemon"
wait "$daemon" 2>/dev/null || true
start_daemon
compile "warm, after persist, kill -9 and restart"
printf 'warm takes %d %% of cold; the cache: %s\n' $((milliseconds * 100 / cold)) \
    "$("$LIARA_CACHE_CLI" inspect | awk '/^(backend|entries|size) / { printf "%s %s  ", $1, $2 }')"
[ "$hits" -gt 0 ]
