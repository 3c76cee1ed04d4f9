# liara-cached: see README.md. The two commands for a new machine are `make demo` and `make check`.
VERSION := 0.1.0
BUILD   ?= build
PREFIX  ?= /usr/local
SYSCONF ?= /etc

LIBRARIES   := libevent libevent_pthreads sqlite3 hiredis inih libxxhash libsystemd jemalloc
# Nothing asks for it by a name of its own.
ALLOCATOR   := -Wl,--push-state,--no-as-needed -ljemalloc -Wl,--pop-state
BUILD_NEEDS := gcc libc6-dev make pkgconf libevent-dev libsqlite3-dev libhiredis-dev libinih-dev \
               libxxhash-dev libsystemd-dev libjemalloc-dev
# redis-tools has the server's program too, without the service that redis-server would start.
CHECK_NEEDS := $(BUILD_NEEDS) check python3 redis-tools
NEEDS       := $(BUILD_NEEDS)

WARN   := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
          -Wcast-qual -Wwrite-strings -Wundef -Wvla -Wformat=2
# A request crosses many small functions of as many files: together they are a fifth shorter.
CFLAGS ?= -O3 -g $(if $(findstring clang,$(CC)),,-flto=auto -ffat-lto-objects)
override CPPFLAGS += -D_GNU_SOURCE -DLIARA_VERSION='"$(VERSION)"'
override CFLAGS   += -std=gnu17 -fPIC -fvisibility=hidden -pthread -MMD -MP $(WARN) $(WERROR) $(SANITIZE)
override LDFLAGS  += -pthread -Wl,--as-needed -Wl,-z,relro,-z,now $(SANITIZE)

asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
tsan := -fsanitize=thread
gcov := --coverage -fprofile-update=atomic

PROTO  := $(wildcard proto/*.c)
DAEMON := $(wildcard daemon/*.c daemon/store/*.c daemon/store/*/*.c)
CLIENT := $(wildcard client/*.c)
CLI    := $(wildcard client/cli/*.c)
UNITS  := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c))
FUZZ   := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz/*.c))

comma   := ,
objects = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
CORE   := $(call objects,$(PROTO) $(filter-out daemon/main.c,$(DAEMON)))
# Recursive makes use all processors, unless -j was given to the first.
again   = $(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))

# The commands themselves are shown by make V=1.
$(if $(V),,.SILENT:)

all: $(BUILD)/liara-cached $(BUILD)/liara-cache-cli $(BUILD)/libliara-cache.so.0 $(BUILD)/libliara-cache.a

# A plain make installs nothing; it says what would.
$(BUILD)/packages.mk: Makefile
	@pkg-config --print-errors --exists $(LIBRARIES) || { \
	  echo "Something to build with is missing; 'make deps' installs it (as root, or with sudo)." >&2; exit 1; }
	@mkdir -p $(@D)
	@{ echo "LIB_CFLAGS := $$(pkg-config --cflags $(LIBRARIES))"; \
	   echo "LIBS := $$(pkg-config --libs $(filter-out jemalloc,$(LIBRARIES)))"; } > $@
# What these do themselves needs no library; what they start in a further make may.
ifneq ($(filter-out clean deps check lint format histories crash faults demo asan tsan gcov coverage policy bench uninstall,$(or $(MAKECMDGOALS),all)),)
include $(BUILD)/packages.mk
endif

$(BUILD)/obj/%.o: %.c | $(BUILD)/packages.mk
	@mkdir -p $(@D)
	@echo "  CC   $<"
	$(CC) $(CPPFLAGS) $(LIB_CFLAGS) $(CFLAGS) -c -o $@ $<

# A sanitizer brings its own allocator.
$(BUILD)/liara-cached: $(call objects,$(PROTO) $(DAEMON))
	@echo "  LINK $@"
	$(CC) $(LDFLAGS) -o $@ $^ $(if $(SANITIZE),,$(ALLOCATOR)) $(LIBS)

# Other compilers than this one are to link it: only machine code goes in.
$(BUILD)/libliara-cache.a: $(call objects,$(PROTO) $(CLIENT))
	@echo "  AR   $@"
	rm -f $@ && ar rcs $@ $^ && objcopy -R '.gnu.lto_*' -R '.gnu.debuglto_*' $@

$(BUILD)/libliara-cache.so.0: $(call objects,$(PROTO) $(CLIENT)) client/libliara-cache.map
	@echo "  LINK $@"
	$(CC) $(LDFLAGS) -shared -Wl,-soname,$(@F) -Wl,--version-script=$(lastword $^) -o $@ $(filter %.o,$^)

$(BUILD)/liara-cache-cli: $(call objects,$(CLI)) $(BUILD)/libliara-cache.a
	@echo "  LINK $@"
	$(CC) $(LDFLAGS) -o $@ $^

# The list of what is installed, for install and uninstall alike: mode, source, place.
define FILES
755 $(BUILD)/liara-cached                 $(PREFIX)/bin/liara-cached
755 $(BUILD)/liara-cache-cli              $(PREFIX)/bin/liara-cache-cli
755 $(BUILD)/libliara-cache.so.0          $(PREFIX)/lib/libliara-cache.so.0
644 $(BUILD)/libliara-cache.a             $(PREFIX)/lib/libliara-cache.a
644 client/liara_cache.h                  $(PREFIX)/include/liara_cache.h
644 conf/liara-cache.pc.in                $(PREFIX)/lib/pkgconfig/liara-cache.pc
644 docs/liara-cached.8                   $(PREFIX)/share/man/man8/liara-cached.8
644 docs/liara-cached.conf.5              $(PREFIX)/share/man/man5/liara-cached.conf.5
644 docs/liara-cache-cli.1                $(PREFIX)/share/man/man1/liara-cache-cli.1
644 docs/liara-cache.3                    $(PREFIX)/share/man/man3/liara-cache.3
644 proto/PROTOCOL.md                     $(PREFIX)/share/doc/liara-cached/PROTOCOL.md
644 conf/liara-cached.conf                $(PREFIX)/share/doc/liara-cached/liara-cached.conf
755 conf/examples/cached-cc               $(PREFIX)/share/doc/liara-cached/examples/cached-cc
644 conf/liara-cached.service             $(PREFIX)/lib/systemd/system/liara-cached.service
644 conf/liara-cached.socket              $(PREFIX)/lib/systemd/system/liara-cached.socket
644 conf/user/liara-cached.service        $(PREFIX)/lib/systemd/user/liara-cached.service
644 conf/user/liara-cached.socket         $(PREFIX)/lib/systemd/user/liara-cached.socket
644 conf/liara-cached.sysusers            $(PREFIX)/lib/sysusers.d/liara-cached.conf
endef
export FILES

# Texts name the paths of this PREFIX; a configuration that is there already is left as it is.
install: all
	@echo "$$FILES" | while read -r mode from to; do \
	  install -D -m $$mode $$from "$(DESTDIR)$$to" || exit 1; \
	  case $$mode$$from in 644conf/*) sed -i -e 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|' \
	    -e 's|/usr/local/bin|$(PREFIX)/bin|' "$(DESTDIR)$$to" || exit 1;; esac; done
	@ln -sf libliara-cache.so.0 "$(DESTDIR)$(PREFIX)/lib/libliara-cache.so"
	@[ -e "$(DESTDIR)$(SYSCONF)/liara-cached.conf" ] || \
	  install -D -m 644 conf/liara-cached.conf "$(DESTDIR)$(SYSCONF)/liara-cached.conf"
	@[ -n "$(DESTDIR)" ] || ldconfig 2>/dev/null || true

# Configuration and stores stay.
uninstall:
	@echo "$$FILES" | while read -r mode from to; do rm -f "$(DESTDIR)$$to"; done
	rm -f "$(DESTDIR)$(PREFIX)/lib/libliara-cache.so"

run: $(BUILD)/liara-cached
	$(BUILD)/liara-cached

deps:
	@tests/deps $(NEEDS)

# Tests: the unit programs, the load of the stress tests, a daemon that also has a store with faults.
$(BUILD)/tests/test_store: $(BUILD)/obj/tests/fault_store.o
$(BUILD)/tests/test_writer: $(BUILD)/obj/tests/fake_disk.o
$(BUILD)/tests/test_store $(BUILD)/tests/faulty-cached: override LDFLAGS += -fno-lto -Wl,--wrap=store_find
# The system calls that change the disk, so that a crash or a failure can come at each.
$(BUILD)/tests/test_log_backing: override LDFLAGS += -fno-lto $(addprefix -Wl$(comma)--wrap=,pwritev \
  pwritev64 pwrite pwrite64 fdatasync fsync fallocate fallocate64 ftruncate ftruncate64 unlinkat renameat)
# Traces of builds, and caches that they are played to.
POLICY := $(call objects,tests/policy/trace.c tests/policy/model.c)
$(BUILD)/tests/test_policy: $(POLICY)
$(BUILD)/tests/test_policy: override LDFLAGS += -lm
$(BUILD)/tests/test_%: $(BUILD)/obj/tests/unit/test_%.o $(CORE) $(BUILD)/libliara-cache.a
	@echo "  LINK $@"
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS) $$(pkg-config --libs check)

$(BUILD)/tests/faulty-cached: $(call objects,$(PROTO) $(DAEMON) tests/fault_store.c)
	@echo "  LINK $@"
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/tests/load: $(BUILD)/obj/tests/load.o
	@echo "  LINK $@"
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^

HISTORY := $(call objects,$(addprefix tests/history/,linear.c client.c server.c trace.c))
$(BUILD)/tests/histories: $(BUILD)/obj/tests/history/histories.o $(HISTORY)
	@echo "  LINK $@"
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^
$(BUILD)/tests/faults: $(BUILD)/obj/tests/fault/faults.o $(HISTORY)
	@echo "  LINK $@"
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^
# Stands before the C library in a daemon of any build.
$(BUILD)/tests/shim.so: tests/fault/shim.c tests/fault/fault.h
	@echo "  LINK $@"
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -std=gnu17 -O1 -g -fPIC -shared $(WARN) $(WERROR) -o $@ $< -ldl
$(BUILD)/tests/test_linear: $(call objects,tests/history/linear.c)

CHECKS := $(addprefix $(BUILD)/tests/,histories faults shim.so)

units: $(UNITS)

everything: all $(UNITS) $(CHECKS) $(BUILD)/tests/faulty-cached $(BUILD)/tests/load

checks: $(CHECKS)

asan tsan gcov:
	@$(again) everything BUILD=$(BUILD)/$@ SANITIZE="$($@)" CFLAGS="-O1 -g -Werror"

check:
	@$(MAKE) --no-print-directory deps NEEDS="$(CHECK_NEEDS)"
	@$(again) all checks WERROR=-Werror
	@! command -v clang >/dev/null || $(again) all CC=clang BUILD=$(BUILD)/clang WERROR=-Werror
	@$(again) asan
	@$(again) tsan
	@tests/run $(BUILD)
	@tests/lint

# The linters that are installed; those of Debian 12.
lint:
	@tests/lint
format:
	@find daemon client proto tests -name '*.[ch]' -print0 | xargs -0 clang-format -i

# Longer forms of the checks whose input is random; see tests/README.md.
histories: OPERATIONS ?= 200000
crash: ROUNDS ?= 200
faults: ROUNDS ?= 0
histories crash faults:
	@$(again) all checks
	@OPERATIONS=$(OPERATIONS) ROUNDS=$(ROUNDS) BACKEND=$(BACKEND) SEED=$(SEED) LIMIT=86400 \
	  tests/run --plain --verbose $(BUILD) "session  $@"

demo:
	@$(MAKE) --no-print-directory deps
	@$(again) all
	@tests/demo.sh $(BUILD)

coverage:
	@$(MAKE) --no-print-directory deps NEEDS="$(CHECK_NEEDS) gcovr"
	@$(again) gcov
	@tests/run --plain $(BUILD)/gcov
	gcovr --root . --filter proto/ --filter daemon/ --print-summary $(BUILD)/gcov

# What eviction keeps, against exact LRU. WORDS: kinds of traces and seeds.
policy: WORDS ?= 1 2
policy:
	@$(MAKE) --no-print-directory deps
	@$(again) $(BUILD)/policy
	@$(BUILD)/policy $(WORDS)

# QUICK=1 is short; ONLY=case,… are some; BASE=commit or folder of a build is measured against;
# PLOTS=docs/bench puts the plots where README.md shows them.
BENCH_NEEDS   := $(BUILD_NEEDS) memcached redis-tools libmemcached-dev gnuplot-nox strace python3
BENCH         := $(addprefix $(BUILD)/bench/,load bare client direct)
bench_objects  = $(call objects,$(addprefix tests/bench/,$(1).c traffic.c peer.c histogram.c))
$(BUILD)/bench/load: $(call bench_objects,load)
$(BUILD)/bench/bare: $(call objects,tests/bench/bare.c)
$(BUILD)/bench/client: $(call bench_objects,client) $(BUILD)/libliara-cache.a
$(BUILD)/bench/direct: $(call bench_objects,direct) $(BUILD)/libliara-cache.a
$(BENCH):
	@echo "  LINK $@"
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ -lsqlite3 -lhiredis -lmemcached -lm

# In process, with the daemon's allocator.
INSIDE := $(addprefix $(BUILD)/bench/,engine disk)
$(INSIDE): $(BUILD)/bench/%: $(BUILD)/obj/tests/bench/%.o \
           $(call objects,$(addprefix tests/bench/,inside.c histogram.c)) $(CORE)
	@echo "  LINK $@"
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(if $(SANITIZE),,$(ALLOCATOR)) $(LIBS)

$(BUILD)/policy: $(call objects,tests/policy/policy.c) $(POLICY) $(CORE)
	@echo "  LINK $@"
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(if $(SANITIZE),,$(ALLOCATOR)) $(LIBS) -lm

benchmarks: all $(BENCH) $(INSIDE)

bench:
	@$(MAKE) --no-print-directory deps NEEDS="$(BENCH_NEEDS)"
	@$(again) benchmarks
	@tests/bench/bench.py --build $(BUILD) $(if $(BASE),--base $(BASE)) \
	  $(if $(ONLY),--only $(ONLY)) $(if $(PLOTS),--plots $(PLOTS))

FUZZ_SECONDS ?= 60
$(BUILD)/fuzz/%: tests/fuzz/%.c $(PROTO) | $(BUILD)/packages.mk
	@mkdir -p $(@D)
	clang $(CPPFLAGS) -std=gnu17 -g -O1 $(WARN) -fsanitize=fuzzer,address,undefined -o $@ $^

fuzz: $(FUZZ)
	@for f in $^; do echo "$$f, $(FUZZ_SECONDS) s"; mkdir -p $$f.corpus; \
	  $$f -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1 $$f.corpus || exit 1; done

clean:
	rm -rf $(BUILD)

.SECONDARY:
.PHONY: all install uninstall run deps units everything checks asan tsan gcov check lint format \
        histories crash faults demo coverage policy benchmarks bench fuzz clean
-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
