/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/moepack.h - all of libmoepack: experts of Mixture-of-Experts
 * checkpoints, laid out for serving kernels.
 *
 * One call packs, and one opens what it wrote:
 *
 *     mp_error err;
 *     mp_repack_options options = {
 *         .size = sizeof options,
 *         .target = mp_target_find("megamoe-w4a8"),
 *         .ep = 8,
 *         .redundant = 32,
 *     };
 *     mp_pack *pack = NULL;
 *
 *     if (mp_repack("DeepSeek-V4-Flash", "packed", &options, NULL, &err) != 0 ||
 *         mp_pack_open(&pack, "packed", NULL, NULL, &err) != 0)
 *         fprintf(stderr, "%s\n", err.message);
 *     else
 *         ... mp_pack_tensor, mp_pack_read
 *     mp_pack_release(pack);
 *
 * Each header opens with its concepts:
 *
 *   pack.h      repacking, unpacking and quantizing, at once or by plans
 *   artifact.h  packs: the manifest, and reading what is in them
 *   verify.h    checks of packs, snapshots and converted checkpoints
 *   base.h      errors, options, element types, schemes, how a long call runs
 *   model.h     the catalog of a checkpoint's experts
 *   store.h     safetensors files and sharded checkpoints
 *   snapshot.h  what engines wrote of their own state
 *   place.h     placement, slots, load balancing, routing
 *   layout.h    target layouts, tile by tile
 *   numeric.h   rows of a quantization scheme
 *   work.h      what a run writes, and runs in parts
 *   compress.h  compressed shards
 *   delta.h     changes between versions
 *   diff.h      how far two checkpoints or packs are apart
 *   forward.h   the reference forward of an MoE layer
 *
 * libmoepack(3) has whole programs.
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
