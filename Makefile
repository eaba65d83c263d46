# SPDX-License-Identifier: Apache-2.0
#
# Builds moepack. `make help` lists the targets, CONTRIBUTING.md explains them.
#
# A configuration (CONF) is a compiler with its flags; each has its own folder
# build/CONF. Every source file is named in a list below: a new file is one line.

# ---------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------

LIB_SOURCES := \
	lib/base/arena.c \
	lib/base/digest.c \
	lib/base/error.c \
	lib/base/file.c \
	lib/base/foreign.c \
	lib/base/formats.c \
	lib/base/json.c \
	lib/base/json_edit.c \
	lib/base/parallel.c \
	lib/base/select.c \
	lib/base/text.c \
	lib/base/transpose.c \
	lib/base/words.c \
	lib/checkpoint/catalog.c \
	lib/checkpoint/checkpoint.c \
	lib/checkpoint/complete.c \
	lib/checkpoint/config.c \
	lib/checkpoint/config_layers.c \
	lib/checkpoint/config_rewrite.c \
	lib/checkpoint/expert.c \
	lib/checkpoint/families.c \
	lib/checkpoint/form.c \
	lib/checkpoint/fused.c \
	lib/checkpoint/header.c \
	lib/checkpoint/index.c \
	lib/checkpoint/members.c \
	lib/checkpoint/names.c \
	lib/checkpoint/promises.c \
	lib/checkpoint/router_names.c \
	lib/checkpoint/rows.c \
	lib/checkpoint/rules.c \
	lib/checkpoint/safetensors.c \
	lib/checkpoint/storage.c \
	lib/checkpoint/towers.c \
	lib/diff/diff.c \
	lib/diff/diff_compare.c \
	lib/diff/diff_list.c \
	lib/diff/diff_plain.c \
	lib/diff/diff_read.c \
	lib/diff/diff_side.c \
	lib/engine/consistency.c \
	lib/engine/deepep.c \
	lib/engine/engines.c \
	lib/engine/environment.c \
	lib/engine/format.c \
	lib/engine/fuseep.c \
	lib/engine/layer_forms.c \
	lib/engine/megamoe_0_5_15.c \
	lib/engine/memory.c \
	lib/engine/model.c \
	lib/engine/names.c \
	lib/engine/pattern.c \
	lib/engine/resolve.c \
	lib/engine/sglang_backend.c \
	lib/engine/sglang_budget.c \
	lib/engine/sglang_megamoe.c \
	lib/engine/sglang_runner.c \
	lib/engine/trtllm.c \
	lib/engine/vllm.c \
	lib/experts/canonical.c \
	lib/experts/packed.c \
	lib/experts/stored.c \
	lib/forward/activations.c \
	lib/forward/catalog_experts.c \
	lib/forward/forward.c \
	lib/forward/layer_act.c \
	lib/forward/layer_route.c \
	lib/forward/layer_router.c \
	lib/forward/measure.c \
	lib/forward/packed.c \
	lib/forward/packed_route.c \
	lib/forward/product.c \
	lib/forward/product_neon.c \
	lib/forward/product_x86.c \
	lib/forward/recipe.c \
	lib/forward/router.c \
	lib/forward/shared_expert.c \
	lib/forward/side.c \
	lib/layout/deepep.c \
	lib/layout/fuseep.c \
	lib/layout/fuseep_nz.c \
	lib/layout/interleave.c \
	lib/layout/megamoe.c \
	lib/layout/megamoe_shared.c \
	lib/layout/nz.c \
	lib/layout/targets.c \
	lib/layout/tile.c \
	lib/layout/utccp.c \
	lib/numeric/avx2.c \
	lib/numeric/avx512.c \
	lib/numeric/decode.c \
	lib/numeric/dispatch.c \
	lib/numeric/encode.c \
	lib/numeric/exact.c \
	lib/numeric/finite.c \
	lib/numeric/forms.c \
	lib/numeric/mx.c \
	lib/numeric/neon.c \
	lib/numeric/nvfp4.c \
	lib/numeric/requantize.c \
	lib/numeric/scalar.c \
	lib/numeric/scales.c \
	lib/numeric/stats.c \
	lib/pack/manifest_form.c \
	lib/pack/manifest_read.c \
	lib/pack/manifest_write.c \
	lib/pack/pack.c \
	lib/pack/shape.c \
	lib/place/bars.c \
	lib/place/best_bound.c \
	lib/place/best_layer.c \
	lib/place/best_moves.c \
	lib/place/best_node.c \
	lib/place/best_pack.c \
	lib/place/best_path.c \
	lib/place/best_windows.c \
	lib/place/chart.c \
	lib/place/counts.c \
	lib/place/counts_csv.c \
	lib/place/counts_json.c \
	lib/place/counts_torch.c \
	lib/place/eplb.c \
	lib/place/eplb_layer.c \
	lib/place/eplb_refine.c \
	lib/place/pickle.c \
	lib/place/placement.c \
	lib/place/placement_json.c \
	lib/place/placement_write.c \
	lib/place/placement_yaml.c \
	lib/place/replicas.c \
	lib/place/route.c \
	lib/place/slots.c \
	lib/place/waterfill.c \
	lib/place/zip.c \
	lib/run/journal.c \
	lib/run/output.c \
	lib/run/partial.c \
	lib/run/run.c \
	lib/run/sidecar.c \
	lib/run/work.c \
	lib/synth/presets.c \
	lib/synth/synth.c \
	lib/synth/synth_check.c \
	lib/synth/synth_config.c \
	lib/synth/synth_families.c \
	lib/synth/synth_formats.c \
	lib/synth/synth_forms.c \
	lib/synth/synth_items.c \
	lib/synth/synth_plan.c \
	lib/synth/synth_shard.c \
	lib/synth/synth_values.c \
	lib/verify/difference.c \
	lib/verify/digest.c \
	lib/verify/exact.c \
	lib/verify/faults.c \
	lib/verify/forms.c \
	lib/verify/identity.c \
	lib/verify/index.c \
	lib/verify/locate.c \
	lib/verify/numeric.c \
	lib/verify/numeric_batch.c \
	lib/verify/numeric_report.c \
	lib/verify/open.c \
	lib/verify/rank.c \
	lib/verify/side.c \
	lib/verify/source.c \
	lib/verify/structure.c \
	lib/verify/verify.c \
	lib/write/check.c \
	lib/write/files.c \
	lib/write/plan.c \
	lib/write/quantize.c \
	lib/write/quantize_config.c \
	lib/write/quantize_layout.c \
	lib/write/quantize_report.c \
	lib/write/quantize_run.c \
	lib/write/quantize_unit.c \
	lib/write/repack.c \
	lib/write/repack_manifest.c \
	lib/write/unit.c \
	lib/write/unpack.c \
	lib/write/unpack_config.c \
	lib/write/unpack_form.c \
	lib/write/unpack_place.c \
	lib/write/unpack_plan.c \
	lib/write/unpack_unit.c \

CMD_SOURCES := \
	cmd/bench.c \
	cmd/bench_trials.c \
	cmd/choices.c \
	cmd/commands.c \
	cmd/completion.c \
	cmd/diff.c \
	cmd/eplb.c \
	cmd/eplb_counts.c \
	cmd/eplb_report.c \
	cmd/errors.c \
	cmd/files.c \
	cmd/forward.c \
	cmd/forward_tokens.c \
	cmd/help.c \
	cmd/inspect.c \
	cmd/inspect_pack.c \
	cmd/main.c \
	cmd/map.c \
	cmd/nearest.c \
	cmd/options.c \
	cmd/output.c \
	cmd/plan.c \
	cmd/plan_json.c \
	cmd/plan_print.c \
	cmd/progress.c \
	cmd/quantize.c \
	cmd/repack.c \
	cmd/route.c \
	cmd/synth.c \
	cmd/targets.c \
	cmd/unpack.c \
	cmd/values.c \
	cmd/verify.c \
	cmd/work.c \

UNIT_SOURCES := \
	tests/unit/failing_memory.c \
	tests/unit/golden.c \
	tests/unit/layout_slot.c \
	tests/unit/null_error_calls.c \
	tests/unit/test_backend.c \
	tests/unit/test_backend_engines.c \
	tests/unit/test_backend_env.c \
	tests/unit/test_backend_format.c \
	tests/unit/test_backend_memory.c \
	tests/unit/test_backend_model.c \
	tests/unit/test_base.c \
	tests/unit/test_canonical.c \
	tests/unit/test_catalog.c \
	tests/unit/test_checkpoint.c \
	tests/unit/test_config.c \
	tests/unit/test_config_rewrite.c \
	tests/unit/test_counts.c \
	tests/unit/test_diff.c \
	tests/unit/test_diff_packs.c \
	tests/unit/test_eplb.c \
	tests/unit/test_eplb_best.c \
	tests/unit/test_families.c \
	tests/unit/test_families_refused.c \
	tests/unit/test_form.c \
	tests/unit/test_forward.c \
	tests/unit/test_forward_layer.c \
	tests/unit/test_forward_sm90.c \
	tests/unit/test_journal.c \
	tests/unit/test_kernels_rows.c \
	tests/unit/test_layout.c \
	tests/unit/test_layout_golden.c \
	tests/unit/test_layout_targets.c \
	tests/unit/test_manifest.c \
	tests/unit/test_memory.c \
	tests/unit/test_memory_forward.c \
	tests/unit/test_memory_pack.c \
	tests/unit/test_memory_quantize.c \
	tests/unit/test_names.c \
	tests/unit/test_null_error.c \
	tests/unit/test_numeric.c \
	tests/unit/test_options.c \
	tests/unit/test_outputs.c \
	tests/unit/test_place.c \
	tests/unit/test_plan.c \
	tests/unit/test_plan_shared.c \
	tests/unit/test_product.c \
	tests/unit/test_quantize.c \
	tests/unit/test_requantize.c \
	tests/unit/test_requantize_exact.c \
	tests/unit/test_requantize_given.c \
	tests/unit/test_requantize_loss.c \
	tests/unit/test_route.c \
	tests/unit/test_router.c \
	tests/unit/test_rows.c \
	tests/unit/test_schemes.c \
	tests/unit/test_select.c \
	tests/unit/test_storage.c \
	tests/unit/test_store.c \
	tests/unit/test_store_write.c \
	tests/unit/test_synth.c \
	tests/unit/test_synth_forms.c \
	tests/unit/test_synth_run.c \
	tests/unit/test_synth_values.c \
	tests/unit/test_unpack.c \
	tests/unit/test_unpack_memory.c \
	tests/unit/test_unpack_run.c \
	tests/unit/test_verify.c \
	tests/unit/test_verify_locate.c \
	tests/unit/test_verify_memory.c \
	tests/unit/test_verify_numeric.c \
	tests/unit/test_verify_numeric_targets.c \
	tests/unit/test_verify_source.c \
	tests/unit/test_verify_structure.c \
	tests/unit/test_verify_targets.c \
	tests/unit/test_verify_vectors.c \

# Each is a program of its own; fuzz_NAME is fed from tests/fuzz/seeds/NAME.
FUZZ_SOURCES := \
	tests/fuzz/fuzz_catalog.c \
	tests/fuzz/fuzz_config.c \
	tests/fuzz/fuzz_env.c \
	tests/fuzz/fuzz_index.c \
	tests/fuzz/fuzz_journal.c \
	tests/fuzz/fuzz_json.c \
	tests/fuzz/fuzz_layout.c \
	tests/fuzz/fuzz_manifest.c \
	tests/fuzz/fuzz_pickle.c \
	tests/fuzz/fuzz_placement.c \
	tests/fuzz/fuzz_safetensors.c \

# Each is a program of its own, which tests/bench/run.sh runs.
BENCH_SOURCES := \
	tests/bench/eplb.c \
	tests/bench/forward.c \
	tests/bench/measure.c \
	tests/bench/quantize.c \
	tests/bench/sparse.c \

# Compiled by the tests that need them.
HELPER_SOURCES := \
	tests/cli/fail_io.c \

PORTABILITY_SOURCES := \
	tests/portability/kernels.c \

PUBLIC_HEADERS := \
	include/moepack/artifact.h \
	include/moepack/backend.h \
	include/moepack/base.h \
	include/moepack/diff.h \
	include/moepack/layout.h \
	include/moepack/model.h \
	include/moepack/moepack.h \
	include/moepack/numeric.h \
	include/moepack/pack.h \
	include/moepack/place.h \
	include/moepack/reference.h \
	include/moepack/store.h \
	include/moepack/synth.h \
	include/moepack/verify.h \
	include/moepack/work.h \

MAN_PAGES := \
	man/moepack-bench.1 \
	man/moepack-completion.1 \
	man/moepack-diff.1 \
	man/moepack-eplb.1 \
	man/moepack-format.5 \
	man/moepack-forward.1 \
	man/moepack-help.1 \
	man/moepack-inspect.1 \
	man/moepack-layouts.7 \
	man/moepack-map.1 \
	man/moepack-plan.1 \
	man/moepack-quantize.1 \
	man/moepack-repack.1 \
	man/moepack-route.1 \
	man/moepack-synth.1 \
	man/moepack-targets.1 \
	man/moepack-unpack.1 \
	man/moepack-verify.1 \
	man/moepack.1 \

SCRIPTS := \
	.ci/run \
	tests/bench/run.sh \
	tests/cli/bench.sh \
	tests/cli/diff.sh \
	tests/cli/eplb.sh \
	tests/cli/faults.sh \
	tests/cli/forward.sh \
	tests/cli/headers.sh \
	tests/cli/help.sh \
	tests/cli/includes.sh \
	tests/cli/inspect.sh \
	tests/cli/install.sh \
	tests/cli/interrupted.bash \
	tests/cli/lib.sh \
	tests/cli/malformed.sh \
	tests/cli/man.sh \
	tests/cli/map.sh \
	tests/cli/options.sh \
	tests/cli/pairs.sh \
	tests/cli/plan.sh \
	tests/cli/quantize.sh \
	tests/cli/repack.sh \
	tests/cli/resume.sh \
	tests/cli/route.sh \
	tests/cli/run \
	tests/cli/symbols.sh \
	tests/cli/synth.sh \
	tests/cli/transformers.sh \
	tests/cli/unpack.sh \
	tests/cli/verify.sh \
	tests/cli/verify_numeric.sh \
	tests/demo.sh \
	tests/malformed/st.sh \
	tests/tools/deps.sh \
	tests/tools/digests.sh \
	tests/tools/every_pack.sh \
	tests/tools/fuzz.sh \
	tests/tools/pairs.sh \
	tests/tools/tidy.sh \

# ---------------------------------------------------------------------------
# Configurations
# ---------------------------------------------------------------------------

comma  := ,
CONF   ?= release
BUILD  := build/$(CONF)
CFLAGS ?= -O2 -g

VERSION   := $(shell sed -n 's/^\#define MP_VERSION *"\(.*\)"/\1/p' include/moepack/base.h)
SO_NAME   := libmoepack.so.0
PACKAGES  := jansson libxxhash yaml-0.1
LIBRARIES := $(shell pkg-config --libs $(PACKAGES) 2>/dev/null) -lm
AARCH64   := aarch64-linux-gnu

WARNINGS := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
	-Wpointer-arith -Wwrite-strings -Wvla
CPPFLAGS += -D_GNU_SOURCE -Iinclude -Ilib
HARDEN   := -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
# Never -march=native or -ffast-math: kernels choose at run time, and bits are exact.
STANDARD := -std=c11 -fPIC -ffp-contract=off -fopenmp
LDFLAGS  += -Wl,-z,relro,-z,now

ifeq ($(origin CC),default)
CC := gcc
endif

SANITIZE :=
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
# The C library comes from the cross compiler; the headers of the others are the
# same for every processor and are taken from this system.
CC       := $(AARCH64)-gcc
CPPFLAGS += -I$(BUILD)/include
else ifneq ($(CONF),release)
$(error CONF=$(CONF) is none of release clang asan ubsan tsan fuzz aarch64)
endif

ifneq ($(CONF),aarch64)
CPPFLAGS += $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null)
endif

# Says in one word what is done; the whole command with V=1.
say = $(if $(V),,@printf '  %-8s%s\n' $(1) $@;)

ALL_CFLAGS := $(STANDARD) $(CFLAGS) $(WARNINGS) $(HARDEN) $(SANITIZE)
COMPILE    = $(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP
LINK       = $(CC) $(ALL_CFLAGS) $(LDFLAGS)

objects     = $(patsubst %.c,$(BUILD)/%.o,$(1))
LIB_OBJECTS  := $(call objects,$(LIB_SOURCES))
CMD_OBJECTS  := $(call objects,$(CMD_SOURCES))
UNIT_OBJECTS := $(call objects,$(UNIT_SOURCES))
FUZZERS      := $(patsubst tests/fuzz/%.c,$(BUILD)/%,$(FUZZ_SOURCES))
BENCHES      := $(patsubst tests/bench/%.c,$(BUILD)/bench/%,$(BENCH_SOURCES))
SHELLS       := bash zsh fish
COMPLETIONS  := $(addprefix $(BUILD)/completion/moepack.,$(SHELLS))

# ---------------------------------------------------------------------------
# Building
# ---------------------------------------------------------------------------

.PHONY: all
all: $(BUILD)/moepack $(BUILD)/libmoepack.a $(BUILD)/libmoepack.so $(BUILD)/moepack.pc \
	$(COMPLETIONS)

$(BUILD)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(call say,compile)$(COMPILE) -c -o $@ $<

$(BUILD)/libmoepack.a: $(LIB_OBJECTS)
	$(call say,archive)rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/$(SO_NAME): $(LIB_OBJECTS)
	$(call say,link)$(LINK) -shared -Wl,-soname,$(SO_NAME) -o $@ $^ $(LIBRARIES)

$(BUILD)/libmoepack.so: $(BUILD)/$(SO_NAME)
	$(call say,link)ln -sf $(SO_NAME) $@

$(BUILD)/moepack: $(CMD_OBJECTS) $(BUILD)/libmoepack.a
	$(call say,link)$(LINK) -o $@ $^ $(LIBRARIES)

# tests/unit/failing_memory.c stands between the program and these.
WRAPPED      := malloc calloc realloc aligned_alloc strdup strndup free open_memstream
UNIT_LDFLAGS := $(addprefix -Wl$(comma)--wrap=,$(WRAPPED))
$(BUILD)/unit: $(UNIT_OBJECTS) $(filter-out %/main.o,$(CMD_OBJECTS)) $(BUILD)/libmoepack.a
	$(call say,link)$(LINK) $(UNIT_LDFLAGS) -o $@ $^ $(LIBRARIES) -lcriterion

# Preloaded by tests: system calls that fail. Never sanitized itself.
$(BUILD)/fail_io.so: tests/cli/fail_io.c Makefile
	@mkdir -p $(@D)
	$(call say,link)$(CC) $(WARNINGS) $(CPPFLAGS) -std=c11 -O2 -shared -fPIC -o $@ $< -ldl

$(BUILD)/bench/%: $(BUILD)/tests/bench/%.o $(BUILD)/libmoepack.a
	@mkdir -p $(@D)
	$(call say,link)$(LINK) -o $@ $^ $(LIBRARIES) $(BENCH_LIBRARIES)

# Only what is measured beside: the library itself has no use for it.
$(BUILD)/bench/forward: BENCH_LIBRARIES := -lopenblas

$(BUILD)/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(BUILD)/libmoepack.a
	@mkdir -p $(@D)
	$(call say,link)$(LINK) -fsanitize=fuzzer -o $@ $^ $(LIBRARIES)

$(BUILD)/completion/moepack.%: $(BUILD)/moepack
	@mkdir -p $(@D)
	$(call say,write)$(BUILD)/moepack completion $* >$@.new && mv $@.new $@

# Always: it depends on PREFIX.
.PHONY: $(BUILD)/moepack.pc
$(BUILD)/moepack.pc:
	@mkdir -p $(@D)
	$(call say,write)printf '%s\n' 'prefix=$(PREFIX)' 'libdir=$(LIBDIR)' 'includedir=$(INCLUDEDIR)' '' \
		'Name: moepack' \
		'Description: repacks the expert weights of MoE models for serving engines' \
		'Version: $(VERSION)' 'Requires.private: $(PACKAGES)' 'Libs: -L$${libdir} -lmoepack' \
		'Libs.private: -fopenmp -lm' 'Cflags: -I$${includedir}' >$@

# Objects of programs with a single source are kept.
.SECONDARY:

-include $(patsubst %.o,%.d,$(LIB_OBJECTS) $(CMD_OBJECTS) $(UNIT_OBJECTS) \
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

unit: $(BUILD)/unit
	$(BUILD)/unit

# The commands' tests, without those that read sources or look at what is installed.
COMMAND_TESTS := $(filter-out $(addprefix tests/cli/,headers.sh includes.sh install.sh lib.sh \
	man.sh pairs.sh symbols.sh),$(filter tests/cli/%.sh,$(SCRIPTS)))
commands: $(BUILD)/moepack $(BUILD)/fail_io.so
	MOEPACK=$(BUILD)/moepack bash tests/cli/run $(COMMAND_TESTS)

# Those of commands that work in several threads.
THREADED_TESTS := $(addprefix tests/cli/,diff.sh faults.sh forward.sh quantize.sh repack.sh resume.sh \
	unpack.sh verify.sh verify_numeric.sh)
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

# Compiles everything for aarch64 and runs the kernels' test there.
.PHONY: aarch64 aarch64-build
aarch64:
	+$(MAKE) CONF=aarch64 aarch64-build
	qemu-aarch64-static build/aarch64/kernels

aarch64-build: $(LIB_OBJECTS) $(CMD_OBJECTS) $(BUILD)/kernels

$(BUILD)/kernels: $(BUILD)/tests/portability/kernels.o $(BUILD)/libmoepack.a
	$(call say,link)$(LINK) -static -o $@ $^ -lm

FOREIGN_HEADERS := $(addprefix build/aarch64/include/,jansson.h jansson_config.h xxhash.h yaml.h)
build/aarch64/include/%.h:
	@mkdir -p $(@D)
	echo '#include <$*.h>' | cpp -M $$(pkg-config --cflags $(PACKAGES)) - | \
		tr -s ' \\\n' '\n' | grep '/$*\.h$$' | xargs -I FILE cp FILE $@

ifeq ($(CONF),aarch64)
$(LIB_OBJECTS) $(CMD_OBJECTS): | $(FOREIGN_HEADERS)
endif

# ---------------------------------------------------------------------------
# Reading over
# ---------------------------------------------------------------------------

C_SOURCES := $(LIB_SOURCES) $(CMD_SOURCES) $(UNIT_SOURCES) $(FUZZ_SOURCES) $(BENCH_SOURCES) \
	$(HELPER_SOURCES) $(PORTABILITY_SOURCES)
C_HEADERS := $(PUBLIC_HEADERS) $(wildcard lib/*/*.h cmd/*.h tests/*/*.h)
# One process a processor; clang-tidy is what takes long.
EACH      := xargs -n 1 -P $(shell nproc)

.PHONY: lint lint-format lint-tidy lint-cppcheck lint-shell lint-man lint-spelling
lint: lint-format lint-tidy lint-cppcheck lint-shell lint-man lint-spelling

lint-format:
	clang-format --dry-run -Werror $(C_SOURCES) $(C_HEADERS)

lint-tidy:
	printf '%s\n' $(LIB_SOURCES) $(CMD_SOURCES) | $(EACH) sh -c \
		'bash tests/tools/tidy.sh "$$1" $(CPPFLAGS) $(STANDARD)' sh

# The compilers know better which variables are set.
lint-cppcheck:
	cppcheck -j $(shell nproc) --quiet --error-exitcode=1 --std=c11 --inline-suppr \
		--enable=warning,portability --suppress=uninitvar \
		--library=tests/tools/cppcheck.cfg $(CPPFLAGS) \
		$(LIB_SOURCES) $(CMD_SOURCES)

lint-shell:
	shellcheck -x $(SCRIPTS)

lint-man:
	mandoc -Tlint -Wwarning $(MAN_PAGES)

lint-spelling:
	codespell --ignore-words-list nd,cann README.md CHANGELOG.md CONTRIBUTING.md Makefile .ci cmd include lib man tests

# ---------------------------------------------------------------------------
# Installing
# ---------------------------------------------------------------------------

PREFIX     ?= /usr/local
BINDIR     ?= $(PREFIX)/bin
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR     ?= $(PREFIX)/share/man
BASH_DIR   ?= $(PREFIX)/share/bash-completion/completions
ZSH_DIR    ?= $(PREFIX)/share/zsh/site-functions
FISH_DIR   ?= $(PREFIX)/share/fish/vendor_completions.d

# man/moepack.1 goes to man1/moepack.1
installed_pages = $(foreach page,$(MAN_PAGES),man$(subst .,,$(suffix $(page)))/$(notdir $(page)))

.PHONY: install uninstall
install: all
	install -d $(addprefix $(DESTDIR),$(BINDIR) $(LIBDIR)/pkgconfig $(INCLUDEDIR)/moepack \
		$(BASH_DIR) $(ZSH_DIR) $(FISH_DIR)) $(addprefix $(DESTDIR)$(MANDIR)/man,1 5 7)
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

uninstall:
	rm -f $(DESTDIR)$(BINDIR)/moepack $(DESTDIR)$(LIBDIR)/libmoepack.a \
		$(DESTDIR)$(LIBDIR)/$(SO_NAME) $(DESTDIR)$(LIBDIR)/libmoepack.so \
		$(DESTDIR)$(LIBDIR)/pkgconfig/moepack.pc $(DESTDIR)$(BASH_DIR)/moepack \
		$(DESTDIR)$(ZSH_DIR)/_moepack $(DESTDIR)$(FISH_DIR)/moepack.fish \
		$(addprefix $(DESTDIR)$(INCLUDEDIR)/moepack/,$(notdir $(PUBLIC_HEADERS))) \
		$(addprefix $(DESTDIR)$(MANDIR)/,$(installed_pages))
	rmdir $(DESTDIR)$(INCLUDEDIR)/moepack

# ---------------------------------------------------------------------------
# The rest
# ---------------------------------------------------------------------------

.PHONY: deps dist clean sources help
deps:
	bash tests/tools/deps.sh

dist:
	@mkdir -p build
	git archive --prefix=moepack-$(VERSION)/ -o build/moepack-$(VERSION).tar.gz HEAD

clean:
	rm -rf build

# What the lists above name, for the test that compares them with the folders.
sources:
	@printf '%s\n' $(C_SOURCES) $(PUBLIC_HEADERS) $(MAN_PAGES) $(SCRIPTS)

help:
	@printf '%s\n' \
		'make            build/release/moepack, libmoepack.a and libmoepack.so' \
		'make demo       install what is needed, build, and show a small run' \
		'make check      install what is needed, build, and run all tests' \
		'make test       the same without looking at what is installed' \
		'make lint       formatting, static analysis, scripts, man pages, spelling' \
		'make asan       the tests under AddressSanitizer and UBSan; also: ubsan, tsan' \
		'make clang      everything with clang' \
		'make fuzz       every fuzz target for FUZZ_SECONDS=10' \
		'make aarch64    everything for aarch64, and its kernels under qemu' \
		'make bench      the benchmarks' \
		'make install    to PREFIX=/usr/local below DESTDIR; also: uninstall' \
		'make deps       install compilers, libraries and tools (Debian, Ubuntu)' \
		'make dist       build/moepack-VERSION.tar.gz from the last commit' \
		'make clean      remove build/'
