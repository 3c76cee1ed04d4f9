# liara-cached: see README.md. The two commands for a new machine are `make demo` and `make check`.
VERSION := 0.1.0
BUILD   ?= build
PREFIX  ?= /usr/local
SYSCONF ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd

LIBRARIES   := libevent libevent_pthreads sqlite3 hiredis inih libxxhash libsystemd
BUILD_NEEDS := gcc libc6-dev make pkgconf libevent-dev libsqlite3-dev libhiredis-dev libinih-dev \
               libxxhash-dev libsystemd-dev
# redis-tools has the server's program too, without the service that redis-server would start.
CHECK_NEEDS := $(BUILD_NEEDS) check python3 redis-tools
NEEDS       := $(BUILD_NEEDS)

WARN   := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
          -Wcast-qual -Wwrite-strings -Wundef -Wvla -Wformat=2
CFLAGS ?= -O2 -g
override CPPFLAGS += -D_GNU_SOURCE -DLIARA_VERSION='"$(VERSION)"'
override CFLAGS   += -std=gnu17 -fPIC -fvisibility=hidden -pthread -MMD -MP $(WARN) $(SANITIZE)
override LDFLAGS  += -pthread -Wl,--as-needed -Wl,-z,relro,-z,now $(SANITIZE)

asan     := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
tsan     := -fsanitize=thread
coverage := --coverage -fprofile-update=atomic

PROTO  := $(wildcard proto/*.c)
DAEMON := $(wildcard daemon/*.c daemon/store/*.c)
CLIENT := $(wildcard client/*.c)
CLI    := $(wildcard client/cli/*.c)
UNITS  := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c))
FUZZ   := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz/*.c))

objects = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
CORE   := $(call objects,$(PROTO) $(filter-out daemon/main.c,$(DAEMON)))
# Recursive makes use all processors, unless -j was given to the first.
again   = $(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))

all: $(BUILD)/liara-cached $(BUILD)/liara-cache-cli $(BUILD)/libliara-cache.so.0 $(BUILD)/libliara-cache.a

# A plain make installs nothing; it says what would.
$(BUILD)/packages.mk: Makefile
	@pkg-config --print-errors --exists $(LIBRARIES) || { \
	  echo "Something to build with is missing; 'make deps' installs it (as root, or with sudo)." >&2; exit 1; }
	@mkdir -p $(@D)
	@{ echo "LIB_CFLAGS := $$(pkg-config --cflags $(LIBRARIES))"; \
	   echo "LIBS := $$(pkg-config --libs $(LIBRARIES))"; } > $@
# What these do themselves needs no library; what they start in a further make may.
ifneq ($(filter-out clean deps check demo asan tsan coverage uninstall,$(or $(MAKECMDGOALS),all)),)
-include $(BUILD)/packages.mk
endif

$(BUILD)/obj/%.o: %.c | $(BUILD)/packages.mk
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(LIB_CFLAGS) $(CFLAGS) -c -o $@ $<

$(BUILD)/liara-cached: $(call objects,$(PROTO) $(DAEMON))
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/libliara-cache.a: $(call objects,$(PROTO) $(CLIENT))
	rm -f $@ && ar rcs $@ $^

$(BUILD)/libliara-cache.so.0: $(call objects,$(PROTO) $(CLIENT)) client/libliara-cache.map
	$(CC) $(LDFLAGS) -shared -Wl,-soname,$(@F) -Wl,--version-script=$(lastword $^) -o $@ $(filter %.o,$^)

$(BUILD)/liara-cache-cli: $(call objects,$(CLI)) $(BUILD)/libliara-cache.a
	$(CC) $(LDFLAGS) -o $@ $^

run: $(BUILD)/liara-cached
	$(BUILD)/liara-cached

deps:
	@tests/deps $(NEEDS)

# Tests: the unit programs, the load of the stress tests, a daemon that also has a store with faults.
$(BUILD)/tests/test_store: $(BUILD)/obj/tests/fault_store.o
$(BUILD)/tests/test_%: $(BUILD)/obj/tests/unit/test_%.o $(CORE) $(BUILD)/libliara-cache.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS) $$(pkg-config --libs check)

$(BUILD)/tests/faulty-cached: $(call objects,$(PROTO) $(DAEMON) tests/fault_store.c)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -Wl,--wrap=store_find -o $@ $^ $(LIBS)

$(BUILD)/tests/load: $(BUILD)/obj/tests/load.o
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^

units: $(UNITS)

everything: all $(UNITS) $(BUILD)/tests/faulty-cached $(BUILD)/tests/load

asan tsan coverage:
	@$(again) everything BUILD=$(BUILD)/$@ SANITIZE="$($@)" CFLAGS="-O1 -g -Werror"

check:
	@$(MAKE) --no-print-directory deps NEEDS="$(CHECK_NEEDS)"
	@$(again) all CFLAGS="-O2 -g -Werror"
	@$(again) asan
	@$(again) tsan
	@tests/run $(BUILD)

demo:
	@$(MAKE) --no-print-directory deps
	@$(again) all
	@tests/demo.sh $(BUILD)

report: coverage
	@tests/run --plain $(BUILD)/coverage
	gcovr --root . --filter proto/ --filter daemon/ --object-directory $(BUILD)/coverage --print-summary

FUZZ_SECONDS ?= 60
$(BUILD)/fuzz/%: tests/fuzz/%.c $(PROTO) | $(BUILD)/packages.mk
	@mkdir -p $(@D)
	clang $(CPPFLAGS) -std=gnu17 -g -O1 $(WARN) -fsanitize=fuzzer,address,undefined -o $@ $^

fuzz: $(FUZZ)
	@for f in $^; do echo "$$f, $(FUZZ_SECONDS) s"; mkdir -p $$f.corpus; \
	  $$f -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1 $$f.corpus || exit 1; done

clean:
	rm -rf $(BUILD)

.PHONY: all run deps units everything asan tsan coverage check demo report fuzz clean
-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
