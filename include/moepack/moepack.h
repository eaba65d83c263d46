/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/moepack.h - all of libmoepack: experts of Mixture-of-Experts
 * checkpoints, laid out for serving kernels.
 *
 *   base.h      errors, element types, schemes, how a long call runs
 *   store.h     safetensors files and sharded checkpoints
 *   model.h     config.json and the catalog of experts
 *   numeric.h   number formats, quantization schemes, kernels
 *   place.h     placement, slots, load balancing, routing
 *   layout.h    target layouts
 *   artifact.h  packed directories: the manifest
 *   pack.h      repacking, unpacking and quantizing
 *   forward.h   the reference forward of an MoE layer
 *   diff.h      how far two checkpoints or packs are apart
 *   verify.h    checks of packed directories
 *
 * Each header opens with its concepts. A checkpoint is opened, its experts are
 * found, a plan is made, run, and the result is checked:
 *
 *     mp_context context = {0}; // one thread a processor
 *     mp_error err;
 *     mp_catalog catalog = {0};
 *     mp_plan plan = {0};
 *     mp_verify_report report = {0};
 *     mp_repack_options options = {
 *         .target = mp_target_find("megamoe-w4a8"),
 *         .ep = 8,
 *         .redundant = 32,
 *     };
 *     mp_verify_options checks = {.level = MP_VERIFY_EXACT, .source = "DeepSeek-V4-Flash"};
 *
 *     if (mp_catalog_open(&catalog, "DeepSeek-V4-Flash", &context, &err) != 0 ||
 *         mp_plan_init(&plan, &catalog, &options, &err) != 0 ||
 *         mp_plan_run(&plan, "packed", MP_RUN_FRESH, &context, &err) != 0 ||
 *         mp_verify("packed", &checks, &context, &report, &err) != 0)
 *         fprintf(stderr, "%s\n", err.message);
 *     else
 *         printf("%llu faults\n", (unsigned long long)report.total_faults);
 *     mp_verify_report_release(&report);
 *     mp_plan_release(&plan);
 *     mp_catalog_release(&catalog);
 */
#ifndef MOEPACK_MOEPACK_H
#define MOEPACK_MOEPACK_H

#include <moepack/artifact.h>
#include <moepack/base.h>
#include <moepack/compress.h>
#include <moepack/delta.h>
#include <moepack/diff.h>
#include <moepack/forward.h>
#include <moepack/layout.h>
#include <moepack/model.h>
#include <moepack/numeric.h>
#include <moepack/pack.h>
#include <moepack/place.h>
#include <moepack/snapshot.h>
#include <moepack/store.h>
#include <moepack/verify.h>
#include <moepack/work.h>

#endif
