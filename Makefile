# liara-cached: see README.md. The two commands for a new machine are `make demo` and `make check`.
VERSION := 0.1.0
PREFIX  ?= /usr/local
BUILD   ?= build
CC      ?= gcc

PACKAGES := libevent libevent_pthreads sqlite3 hiredis inih libxxhash libsystemd
WARN     := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
            -Wcast-qual -Wwrite-strings -Wundef -Wvla -Wformat=2
CFLAGS   ?= -O2 -g
override CPPFLAGS += -D_GNU_SOURCE -DLIARA_VERSION='"$(VERSION)"'
override CFLAGS   += -std=gnu17 -fPIC -pthread -MMD -MP $(WARN) $(SANITIZE)
override LDFLAGS  += -pthread $(SANITIZE)

PROTO  := $(wildcard proto/*.c)
DAEMON := $(wildcard daemon/*.c daemon/store/*.c)
CLIENT := $(wildcard client/*.c)
CLI    := $(wildcard client/cli/*.c)
UNITS  := $(wildcard tests/unit/test_*.c)

objects = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
CORE   := $(call objects,$(PROTO) $(filter-out daemon/main.c,$(DAEMON)))

all: $(BUILD)/liara-cached $(BUILD)/liara-cache-cli $(BUILD)/libliara-cache.so.0 $(BUILD)/libliara-cache.a

# A plain make installs nothing; it says what would.
$(BUILD)/packages.mk: Makefile
	@pkg-config --exists $(PACKAGES) || { \
	  echo "Missing libraries; 'make deps' installs them (as root or with sudo):" >&2; \
	  pkg-config --print-errors --exists $(PACKAGES); exit 1; }
	@mkdir -p $(@D)
	@{ echo "LIB_CFLAGS := $$(pkg-config --cflags $(PACKAGES))"; \
	   echo "LIBS := $$(pkg-config --libs $(PACKAGES))"; } > $@
ifneq ($(filter-out clean deps demo uninstall,$(or $(MAKECMDGOALS),all)),)
-include $(BUILD)/packages.mk
endif

$(BUILD)/obj/%.o: %.c | $(BUILD)/packages.mk
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(LIB_CFLAGS) $(CFLAGS) -c -o $@ $<

$(BUILD)/liara-cached: $(call objects,$(PROTO) $(DAEMON))
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/libliara-cache.a: $(call objects,$(PROTO) $(CLIENT))
	rm -f $@ && ar rcs $@ $^

$(BUILD)/libliara-cache.so.0: $(call objects,$(PROTO) $(CLIENT))
	$(CC) $(LDFLAGS) -shared -Wl,-soname,libliara-cache.so.0 -o $@ $^

$(BUILD)/liara-cache-cli: $(call objects,$(CLI)) $(BUILD)/libliara-cache.a
	$(CC) $(LDFLAGS) -o $@ $^

$(BUILD)/tests/test_%: $(BUILD)/obj/tests/unit/test_%.o $(CORE) $(BUILD)/libliara-cache.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(LIBS) $$(pkg-config --libs check)

units: $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(UNITS))

clean:
	rm -rf build

.PHONY: all units clean
-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
