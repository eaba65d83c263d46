/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moepack/snapshot.h - weights as serving engines dump them after they have loaded a model.
 *
 * Three kinds are known by their files:
 *   SGLang presharded   checksum.json, READY, model-00000-common.safetensor, ...
 *   sharded_state       model-rank-0-part-0.safetensors, ... (SGLang, vLLM)
 *   BigTensorLoader     0.json or 0.v2.json, and 0.snapshot beside it, ... (vllm-ascend)
 *
 * A snapshot that is open is the tensors of every rank by the names that the engine has for them.
 * What is wrong with its files is a list of findings, not an error: whoever opens one wants to
 * know all of it. mp_verify (verify.h) does more: it looks at the bytes.
 */
#ifndef MOEPACK_SNAPSHOT_H
#define MOEPACK_SNAPSHOT_H

#include <moepack/base.h>
#include <moepack/store.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

typedef enum mp_snapshot_kind {
    MP_SNAPSHOT_NONE, /* a directory of something else */
    MP_SNAPSHOT_PRESHARDED,
    MP_SNAPSHOT_SHARDED_STATE,
    MP_SNAPSHOT_BIG_TENSOR
} mp_snapshot_kind;

/* Which kind a directory is, by the names of its files; a file is none. MP_ERR_IO where it cannot
 * be read. */
int mp_snapshot_find(const char *dir, mp_snapshot_kind *kind, mp_error *err);

/* Something that does not hold. */
typedef struct mp_finding {
    bool digest;  /* of a checksum, else of the structure */
    int64_t rank; /* -1: of none */
    char *tensor; /* its name, or null */
    char *text;
} mp_finding;

/* How many findings are kept; the rest are counted. */
#define MP_FINDINGS_KEPT 100

typedef struct mp_snapshot_rank {
    uint32_t rank;
    bool selected; /* else nothing of it is looked at, and its files may be missing */
    /* A view: the shards are those of the snapshot, and their owner. Sorted by name. */
    mp_checkpoint tensors;
    char *digest; /* BigTensorLoader: SHA-256 of the blob; or null */
} mp_snapshot_rank;

typedef struct mp_snapshot {
    mp_snapshot_kind kind;
    char *dir;
    mp_checkpoint *files; /* [num_files], each with one shard; those that are not there are empty */
    mp_shard *shards;     /* [num_files], the same ones */
    size_t num_files;
    mp_snapshot_rank *ranks; /* ascending */
    size_t num_ranks;
    /* What SGLang presharded says in its configuration; the others say nothing. */
    bool megamoe;          /* DeepGEMM's MegaMoE is the backend */
    uint32_t stages;       /* of a pipeline: each is as many ranks in a row; 1 without */
    uint64_t redundant;    /* experts that are copies; UINT64_MAX where it does not say */
    char *expert_location; /* where experts are: "trivial", a placement or its digest, or null */
    mp_finding findings[MP_FINDINGS_KEPT];
    size_t num_findings;
    uint64_t total_findings;
    void *arena; /* private */
} mp_snapshot;

/* Opens a snapshot of a kind.
 * ranks: those that are looked at, as mp_select_ranks reads it; null: all.
 * context: threads that read headers; may be null.
 * MP_ERR_INPUT where its description is malformed so that nothing can be said, MP_ERR_USAGE
 * for a list of ranks that there are not, MP_ERR_IO. */
int mp_snapshot_open(mp_snapshot *snapshot, mp_snapshot_kind kind, const char *dir,
                     const char *ranks, const mp_context *context, mp_error *err);
void mp_snapshot_release(mp_snapshot *snapshot);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
