# SPDX-License-Identifier: Apache-2.0
#
# Builds moepack. `make help` lists the targets, CONTRIBUTING.md explains them.
#
# A configuration (CONF) is a compiler with its flags; each has its own folder
# build/CONF. Sources are found by where they are: a new file is built without a line here.

# ---------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------

# Sorted, so that what is linked does not depend on the directory's order.
files = $(sort $(wildcard $(1)))

# Layers that the program has of its own: nobody who links the library asks for them.
PROGRAM_SOURCES := $(call files,cmd/*.c lib/bench/*.c lib/engine/*.c lib/synth/*.c)
LIB_SOURCES     := $(filter-out $(PROGRAM_SOURCES),$(call files,lib/*/*.c))
UNIT_SOURCES    := $(call files,tests/unit/*.c)
# Each is a program of its own; fuzz_NAME is fed from tests/fuzz/seeds/NAME.
FUZZ_SOURCES := $(call files,tests/fuzz/fuzz_*.c)
# Each is a program of its own, which tests/bench/run.sh runs.
BENCH_SOURCES := $(call files,tests/bench/*.c)
# Compiled by the tests that need them.
HELPER_SOURCES := $(call files,tests/cli/*.c tests/examples/*.c)
# For the emulator of a foreign processor: a program without libraries, and what unit tests need.
PORTABILITY_SOURCES := $(call files,tests/portability/*.c)

PUBLIC_HEADERS := $(call files,include/moepack/*.h)
MAN_PAGES      := $(call files,man/*.[1-9])
SCRIPTS        := $(call files,.ci/run tests/cli/run tests/*.sh tests/*/*.sh tests/*/*.bash)

# ---------------------------------------------------------------------------
# Configurations
# ---------------------------------------------------------------------------

comma  := ,
CONF   ?= release
BUILD  := build/$(CONF)
CFLAGS ?= -O2 -g

# The header says it for all: the program, the library's file name, moepack.pc, the archive.
VERSION   := $(shell sed -n 's/^\#define MP_VERSION *"\(.*\)"/\1/p' include/moepack/base.h)
SO_NAME   := libmoepack.so.$(firstword $(subst ., ,$(VERSION)))
PACKAGES  := jansson libxxhash libzstd yaml-0.1
LIBRARIES := $(shell pkg-config --libs $(PACKAGES) 2>/dev/null) -lm
AARCH64   := aarch64-linux-gnu

WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	-Wpointer-arith -Wwrite-strings -Wvla
# A compiler that warns of more than ours must not keep users from building.
ifeq ($(DEVELOPER),1)
WARNINGS += -Werror
endif
# Apart from CPPFLAGS, and RELRO from LDFLAGS: these and CFLAGS are the user's, and stay as they
# are given for a make that a test calls.
INCLUDES := -D_GNU_SOURCE -Iinclude -Ilib
HARDEN   := -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
# Exported is what public headers declare: they open with a pragma that says so.
# Never -march=native or -ffast-math: kernels choose at run time, and bits are exact.
STANDARD := -std=c11 -fPIC -fvisibility=hidden -ffp-contract=off -fopenmp
# What is built does not tell where.
NOWHERE  := -ffile-prefix-map=$(CURDIR)=.
RELRO    := -Wl,-z,relro,-z,now

ifeq ($(origin CC),default)
CC := gcc
endif

SANITIZE :=
EMULATOR :=
ifeq ($(CONF),clang)
CC := clang
else ifeq ($(CONF),asan)
CFLAGS   := -O1 -g
HARDEN   :=
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
else ifeq ($(CONF),ubsan)
CFLAGS   := -O1 -g
HARDEN   :=
SANITIZE := -fsanitize=undefined -fno-sanitize-recover=all
else ifeq ($(CONF),tsan)
# clang's OpenMP tells the sanitizer what its barriers order; gcc's does not.
CC       := clang
CFLAGS   := -O1 -g
HARDEN   :=
SANITIZE := -fsanitize=thread
else ifeq ($(CONF),fuzz)
CC       := clang
CFLAGS   := -O1 -g
HARDEN   :=
SANITIZE := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
else ifeq ($(CONF),aarch64)
# The C library comes from the cross compiler, other libraries and headers from the packages in root.
# Without these, objects can still be compiled: headers are the same for every processor, and are
# taken from this system.
CC       := $(AARCH64)-gcc
EMULATOR := qemu-aarch64-static
ifneq ($(wildcard $(BUILD)/root),)
CC       += --sysroot=$(BUILD)/root
EMULATOR := QEMU_LD_PREFIX=$(BUILD)/root $(EMULATOR)
else
FOREIGN_HEADERS := $(addprefix $(BUILD)/include/,jansson.h jansson_config.h xxhash.h yaml.h zstd.h \
	zstd_errors.h)
INCLUDES += -I$(BUILD)/include
endif
else ifneq ($(CONF),release)
$(error CONF=$(CONF) is none of release clang asan ubsan tsan fuzz aarch64)
endif

ifneq ($(CONF),aarch64)
INCLUDES += $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null)
endif

PREFIX     ?= /usr/local
BINDIR     ?= $(PREFIX)/bin
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR     ?= $(PREFIX)/share/man
BASH_DIR   ?= $(PREFIX)/share/bash-completion/completions
ZSH_DIR    ?= $(PREFIX)/share/zsh/site-functions
FISH_DIR   ?= $(PREFIX)/share/fish/vendor_completions.d
PYTHON_DIR ?= $(PREFIX)/share/moepack/python

# Says in one word what is done; the whole command with V=1.
say = $(if $(V),,@printf '  %-8s%s\n' $(1) $@;)

ALL_CFLAGS := $(STANDARD) $(NOWHERE) $(CFLAGS) $(WARNINGS) $(HARDEN) $(SANITIZE)
COMPILE := $(CC) $(INCLUDES) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP
LINK    := $(CC) $(ALL_CFLAGS) $(RELRO) $(LDFLAGS)

objects = $(patsubst %.c,$(BUILD)/%.o,$(1))
LIB_OBJECTS     := $(call objects,$(LIB_SOURCES))
PROGRAM_OBJECTS := $(call objects,$(PROGRAM_SOURCES))
UNIT_OBJECTS    := $(call objects,$(UNIT_SOURCES))
FUZZERS         := $(patsubst tests/fuzz/%.c,$(BUILD)/%,$(FUZZ_SOURCES))
BENCHES         := $(patsubst tests/bench/%.c,$(BUILD)/bench/%,$(BENCH_SOURCES))
SHELLS          := bash zsh fish
COMPLETIONS     := $(addprefix $(BUILD)/completion/moepack.,$(SHELLS))

# ---------------------------------------------------------------------------
# Building
# ---------------------------------------------------------------------------

.PHONY: all
all: $(BUILD)/moepack $(BUILD)/libmoepack.a $(BUILD)/libmoepack.so $(BUILD)/moepack.pc \
	$(COMPLETIONS)

# build/CONF/NAME.stamp holds the value of the variable NAME, and is written only when that is
# not what it was. Objects depend on the flags; what is linked depends on the list of its
# objects too, so that those of deleted sources go.
FLAGS   := $(COMPILE) $(LINK) $(LIBRARIES)
PC      := $(PREFIX) $(LIBDIR) $(INCLUDEDIR) $(VERSION) $(PACKAGES)
STAMPED := FLAGS PC LIB_OBJECTS PROGRAM_OBJECTS UNIT_OBJECTS

define stamp
ifneq ($$(file <$(BUILD)/$(1).stamp),$$($(1)))
.PHONY: $(BUILD)/$(1).stamp
endif
endef
$(foreach name,$(STAMPED),$(eval $(call stamp,$(name))))

$(STAMPED:%=$(BUILD)/%.stamp): $(BUILD)/%.stamp:
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$($*))' >$@

# What a rule links, of what it depends on.
linked = $(filter %.o %.a,$^)

$(BUILD)/%.o: %.c $(BUILD)/FLAGS.stamp
	@mkdir -p $(@D)
	$(call say,compile)$(COMPILE) -c -o $@ $<

$(BUILD)/libmoepack.a: $(LIB_OBJECTS) $(BUILD)/LIB_OBJECTS.stamp
	$(call say,archive)rm -f $@ && $(AR) rcs $@ $(linked)

$(BUILD)/$(SO_NAME): $(LIB_OBJECTS) $(BUILD)/LIB_OBJECTS.stamp
	$(call say,link)$(LINK) -shared -Wl,-soname,$(SO_NAME) -o $@ $(linked) $(LIBRARIES)

$(BUILD)/libmoepack.so: $(BUILD)/$(SO_NAME)
	$(call say,link)ln -sf $(SO_NAME) $@

$(BUILD)/moepack: $(PROGRAM_OBJECTS) $(BUILD)/libmoepack.a $(BUILD)/PROGRAM_OBJECTS.stamp
	$(call say,link)$(LINK) -o $@ $(linked) $(LIBRARIES)

# tests/unit/failing_memory.c stands between the program and these.
WRAPPED      := malloc calloc realloc aligned_alloc strdup strndup free open_memstream
UNIT_LDFLAGS := $(addprefix -Wl$(comma)--wrap=,$(WRAPPED))
$(BUILD)/unit: $(UNIT_OBJECTS) $(filter-out %/main.o,$(PROGRAM_OBJECTS)) $(BUILD)/libmoepack.a \
	$(BUILD)/UNIT_OBJECTS.stamp $(BUILD)/PROGRAM_OBJECTS.stamp
	$(call say,link)$(LINK) $(UNIT_LDFLAGS) -o $@ $(linked) $(LIBRARIES) -lcriterion

# Preloaded by tests: system calls that fail. Never sanitized itself.
$(BUILD)/fail_io.so: tests/cli/fail_io.c $(BUILD)/FLAGS.stamp
	@mkdir -p $(@D)
	$(call say,link)$(CC) $(WARNINGS) $(INCLUDES) $(CPPFLAGS) -std=c11 -O2 -shared -fPIC -o $@ $< -ldl

$(BUILD)/bench/%: $(BUILD)/tests/bench/%.o $(BUILD)/libmoepack.a
	@mkdir -p $(@D)
	$(call say,link)$(LINK) -o $@ $(linked) $(LIBRARIES) $(BENCH_LIBRARIES)

# Only what is measured beside: the library itself has no use for it.
$(BUILD)/bench/forward: BENCH_LIBRARIES := -lopenblas

# Layers of the program read files too.
$(BUILD)/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(filter $(BUILD)/lib/%,$(PROGRAM_OBJECTS)) \
	$(BUILD)/libmoepack.a
	@mkdir -p $(@D)
	$(call say,link)$(LINK) -fsanitize=fuzzer -o $@ $(linked) $(LIBRARIES)

$(BUILD)/completion/moepack.%: $(BUILD)/moepack
	@mkdir -p $(@D)
	$(call say,write)$(BUILD)/moepack completion $* >$@.new && mv $@.new $@

$(BUILD)/moepack.pc: $(BUILD)/PC.stamp
	$(call say,write)printf '%s\n' 'prefix=$(PREFIX)' 'libdir=$(LIBDIR)' 'includedir=$(INCLUDEDIR)' '' \
		'Name: moepack' \
		'Description: repacks the expert weights of MoE models for serving engines' \
		'Version: $(VERSION)' 'Requires.private: $(PACKAGES)' 'Libs: -L$${libdir} -lmoepack' \
		'Libs.private: -fopenmp -lm' 'Cflags: -I$${includedir}' >$@

# Objects of programs with a single source are kept.
.SECONDARY:

-include $(patsubst %.o,%.d,$(LIB_OBJECTS) $(PROGRAM_OBJECTS) $(UNIT_OBJECTS) \
	$(call objects,$(FUZZ_SOURCES) $(BENCH_SOURCES) $(PORTABILITY_SOURCES)))

# ---------------------------------------------------------------------------
# Testing
# ---------------------------------------------------------------------------

# The submakes see what deps has installed.
.PHONY: demo check test unit commands threaded
demo: deps
	+$(MAKE) all
	bash tests/demo.sh

check: deps
	+$(MAKE) test

test: all unit $(BUILD)/fail_io.so
	bash tests/cli/run

# A test runs on every processor; threads that wait take it from another test.
# SUITES, a pattern, chooses some of the tests.
unit: $(BUILD)/unit
	OMP_WAIT_POLICY=passive $(EMULATOR) $(BUILD)/unit $(if $(SUITES),--filter '$(SUITES)/*')

# What takes long: every moment at which a command can be killed, refused or out of memory, and all
# unit tests on an emulated processor.
.PHONY: check-long
check-long: all $(BUILD)/fail_io.so
	LONG=1 MOEPACK=$(BUILD)/moepack bash tests/cli/run tests/cli/writers.sh tests/cli/scarce.sh
	+$(MAKE) aarch64

# Loading into torch, beside a load as engines do it. Says so and fails where torch is not here.
.PHONY: check-torch
check-torch: $(BUILD)/moepack
	@ROOT=$(CURDIR) MOEPACK=$(CURDIR)/$(BUILD)/moepack python3 tests/loaders/check_torch.py

# Runs in parts under a Slurm that is started for it, and under GNU parallel. Says so and fails
# where these are not here, or the user is not root.
.PHONY: check-cluster
check-cluster: $(BUILD)/moepack
	@MOEPACK=$(BUILD)/moepack bash tests/cluster/check.sh

# The memory that runs take, also in a cgroup where one can be made.
.PHONY: check-memory
check-memory: $(BUILD)/moepack
	@MOEPACK=$(BUILD)/moepack bash tests/memory/check.sh

# The commands' tests, without those that read sources, look at what is installed or drawn, or take
# the place of what allocates, and without long ones: they go through the thread sanitizer, or what
# they run has unit tests and fuzzers under this one.
COMMAND_TESTS := $(filter-out $(addprefix tests/cli/,build.sh compress.sh delta.sh diff_snapshot.sh examples.sh \
	formats.sh forward.sh headers.sh includes.sh install.sh lib.sh libmoepack.sh loaders.sh man.sh \
	pairs.sh pictures.sh progress.sh quantize.sh repack.sh resume.sh scarce.sh symbols.sh), \
	$(call files,tests/cli/*.sh))
commands: $(BUILD)/moepack $(BUILD)/fail_io.so
	MOEPACK=$(BUILD)/moepack bash tests/cli/run $(COMMAND_TESTS)

# Those of commands that work in several threads.
THREADED_TESTS := $(addprefix tests/cli/,compress.sh diff.sh faults.sh forward.sh quantize.sh repack.sh resume.sh \
	unpack.sh update.sh verify.sh verify_numeric.sh)
threaded: $(BUILD)/moepack $(BUILD)/fail_io.so
	MOEPACK=$(BUILD)/moepack bash tests/cli/run $(THREADED_TESTS)

.PHONY: asan ubsan tsan clang
# fail_io.so is loaded before AddressSanitizer, which has to bear it.
asan ubsan:
	+ASAN_OPTIONS=verify_asan_link_order=0 $(MAKE) CONF=$@ unit commands

# Criterion maps memory where this sanitizer keeps its own, so that the unit tests
# cannot run. libomp orders accesses in ways that only its own code knows.
tsan:
	+TSAN_OPTIONS=ignore_noninstrumented_modules=1 $(MAKE) CONF=tsan threaded

clang:
	+$(MAKE) CONF=clang all unit

.PHONY: fuzz run-fuzzers
FUZZ_SECONDS ?= 10
fuzz:
	+$(MAKE) CONF=fuzz run-fuzzers

run-fuzzers: $(FUZZERS)
	bash tests/tools/fuzz.sh $(FUZZ_SECONDS) $(FUZZERS)

.PHONY: bench benches
benches: $(BENCHES)

bench: $(BUILD)/moepack $(BENCHES)
	bash tests/bench/run.sh $(BUILD)

# The unit tests on aarch64: all of them, which takes some minutes, or those whose results depend on
# the processor's arithmetic. What can be had without packages for it: all of the library and the
# program is compiled, and the kernels' test runs.
.PHONY: aarch64 aarch64-sample aarch64-kernels kernels
aarch64:
	bash tests/tools/arm64.sh build/aarch64/root
	+$(MAKE) CONF=aarch64 kernels unit

ARITHMETIC := canonical|diff*|forward*|kernels*|layout*|nearest|product|quantize|requantize*|route*
ARITHMETIC := $(ARITHMETIC)|rows|schemes|synth_values|values|verify_numeric
aarch64-sample:
	+$(MAKE) aarch64 SUITES='@($(ARITHMETIC))'

aarch64-kernels:
	+$(MAKE) CONF=aarch64 kernels

kernels: $(LIB_OBJECTS) $(PROGRAM_OBJECTS) $(BUILD)/kernels
	$(EMULATOR) $(BUILD)/kernels

$(BUILD)/kernels: $(BUILD)/tests/portability/kernels.o $(BUILD)/libmoepack.a
	$(call say,link)$(LINK) -static -o $@ $(linked) -lm

ifeq ($(CONF),aarch64)
$(BUILD)/unit: $(BUILD)/tests/portability/exec.o
# Only what is tested has to be as users have it.
$(UNIT_OBJECTS): COMPILE += -O1
$(LIB_OBJECTS) $(PROGRAM_OBJECTS): | $(FOREIGN_HEADERS)
endif

build/aarch64/include/%.h:
	@mkdir -p $(@D)
	echo '#include <$*.h>' | cpp -M $$(pkg-config --cflags $(PACKAGES)) - | \
		tr -s ' \\\n' '\n' | grep '/$*\.h$$' | xargs -I FILE cp FILE $@

# ---------------------------------------------------------------------------
# Reading over
# ---------------------------------------------------------------------------

C_SOURCES := $(LIB_SOURCES) $(PROGRAM_SOURCES) $(UNIT_SOURCES) $(FUZZ_SOURCES) $(BENCH_SOURCES) \
	$(HELPER_SOURCES) $(PORTABILITY_SOURCES)
C_HEADERS := $(wildcard include/moepack/*.h lib/*/*.h cmd/*.h tests/*/*.h)
# One process a processor; clang-tidy is what takes long.
EACH      := xargs -n 1 -P $(shell nproc)

.PHONY: lint lint-format lint-tidy lint-cppcheck lint-shell lint-man lint-spelling
lint: lint-format lint-tidy lint-cppcheck lint-shell lint-man lint-spelling

lint-format:
	clang-format --dry-run -Werror $(C_SOURCES) $(C_HEADERS)

lint-tidy:
	printf '%s\n' $(LIB_SOURCES) $(PROGRAM_SOURCES) | $(EACH) sh -c \
		'bash tests/tools/tidy.sh "$$1" $(INCLUDES) $(CPPFLAGS) $(STANDARD)' sh

# The compilers know better which variables are set.
lint-cppcheck:
	cppcheck -j $(shell nproc) --quiet --error-exitcode=1 --std=c11 --inline-suppr \
		--enable=warning,portability --suppress=uninitvar \
		--library=tests/tools/cppcheck.cfg $(INCLUDES) $(CPPFLAGS) \
		$(LIB_SOURCES) $(PROGRAM_SOURCES)

lint-shell:
	shellcheck -x $(SCRIPTS)

lint-man:
	mandoc -Tlint -Wwarning $(MAN_PAGES)

lint-spelling:
	codespell --ignore-words-list nd,cann README.md CHANGELOG.md CONTRIBUTING.md Makefile .ci cmd include lib man tests

# ---------------------------------------------------------------------------
# Installing
# ---------------------------------------------------------------------------

# man/moepack.1 goes to man1/moepack.1
installed_pages = $(foreach page,$(MAN_PAGES),man$(subst .,,$(suffix $(page)))/$(notdir $(page)))

.PHONY: install uninstall
install: all
	install -d $(addprefix $(DESTDIR),$(BINDIR) $(LIBDIR)/pkgconfig $(INCLUDEDIR)/moepack \
		$(BASH_DIR) $(ZSH_DIR) $(FISH_DIR) $(PYTHON_DIR)/moepack) \
		$(addprefix $(DESTDIR)$(MANDIR)/,$(sort $(dir $(installed_pages))))
	install -m 755 $(BUILD)/moepack $(DESTDIR)$(BINDIR)
	install -m 644 $(BUILD)/libmoepack.a $(DESTDIR)$(LIBDIR)
	install -m 755 $(BUILD)/$(SO_NAME) $(DESTDIR)$(LIBDIR)
	ln -sf $(SO_NAME) $(DESTDIR)$(LIBDIR)/libmoepack.so
	install -m 644 $(BUILD)/moepack.pc $(DESTDIR)$(LIBDIR)/pkgconfig
	install -m 644 $(PUBLIC_HEADERS) $(DESTDIR)$(INCLUDEDIR)/moepack
	$(foreach page,$(installed_pages),install -m 644 man/$(notdir $(page)) \
		$(DESTDIR)$(MANDIR)/$(page) &&) true
	install -m 644 $(BUILD)/completion/moepack.bash $(DESTDIR)$(BASH_DIR)/moepack
	install -m 644 $(BUILD)/completion/moepack.zsh $(DESTDIR)$(ZSH_DIR)/_moepack
	install -m 644 $(BUILD)/completion/moepack.fish $(DESTDIR)$(FISH_DIR)/moepack.fish
	install -m 644 $(wildcard lib/loaders/moepack/*.py) $(DESTDIR)$(PYTHON_DIR)/moepack

uninstall:
	rm -f $(DESTDIR)$(BINDIR)/moepack $(DESTDIR)$(LIBDIR)/libmoepack.a \
		$(DESTDIR)$(LIBDIR)/$(SO_NAME) $(DESTDIR)$(LIBDIR)/libmoepack.so \
		$(DESTDIR)$(LIBDIR)/pkgconfig/moepack.pc $(DESTDIR)$(BASH_DIR)/moepack \
		$(DESTDIR)$(ZSH_DIR)/_moepack $(DESTDIR)$(FISH_DIR)/moepack.fish \
		$(addprefix $(DESTDIR)$(INCLUDEDIR)/moepack/,$(notdir $(PUBLIC_HEADERS))) \
		$(addprefix $(DESTDIR)$(MANDIR)/,$(installed_pages))
	rm -rf $(DESTDIR)$(PYTHON_DIR)/moepack
	rmdir $(DESTDIR)$(INCLUDEDIR)/moepack

# ---------------------------------------------------------------------------
# The rest
# ---------------------------------------------------------------------------

.PHONY: deps dist check-dist clean help
deps:
	bash tests/tools/deps.sh

# The same commit gives the same bytes: git takes the times from it.
ARCHIVE := build/moepack-$(VERSION).tar.xz
dist:
	@mkdir -p build
	git archive --format=tar --prefix=moepack-$(VERSION)/ HEAD | xz -T1 -9 >$(ARCHIVE).new
	mv $(ARCHIVE).new $(ARCHIVE)

# Archive, packages and image, made from the last commit and looked at.
check-dist:
	bash tests/dist.sh

clean:
	rm -rf build

help:
	@printf '%s\n' \
		'make            build/release/moepack, libmoepack.a and libmoepack.so' \
		'make demo       install what is needed, build, and show a small run' \
		'make check      install what is needed, build, and run all tests' \
		'make test       the same without looking at what is installed' \
		'make check-long  every command, killed, refused and without memory at every call; aarch64' \
		'make check-torch  loading packs into torch, where it is installed' \
		'make check-cluster  runs in parts under Slurm and GNU parallel, as root' \
		'make check-memory  the memory that runs take, also in a cgroup' \
		'make lint       formatting, static analysis, scripts, man pages, spelling' \
		'make asan       the tests under AddressSanitizer and UBSan; also: ubsan, tsan' \
		'make clang      everything with clang' \
		'make fuzz       every fuzz target for FUZZ_SECONDS=10' \
		'make aarch64    the unit tests for aarch64, under qemu; fetches packages, without root' \
		'make aarch64-sample  the same with the tests of arithmetic only' \
		'make aarch64-kernels  everything for aarch64, and its kernels under qemu' \
		'make bench      the benchmarks' \
		'make install    to PREFIX=/usr/local below DESTDIR; also: uninstall' \
		'make deps       install compilers, libraries and tools (Debian, Ubuntu)' \
		'make dist       build/moepack-VERSION.tar.xz from the last commit' \
		'make check-dist  that archive, the Debian packages and the image, built and tried' \
		'make clean      remove build/'
