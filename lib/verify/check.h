/* SPDX-License-Identifier: Apache-2.0 */
/* verify/check.h - a packed directory under check.
 *
 * What a rank has to hold follows from the manifest's sizes and the target's
 * description; the manifest's own list of tensors is only another thing to check. */
#ifndef MP_VERIFY_CHECK_H
#define MP_VERIFY_CHECK_H

#include <moepack/artifact.h>
#include <moepack/layout.h>
#include <moepack/place.h>
#include <moepack/store.h>
#include <moepack/verify.h>

#include "base/parallel.h"
#include "pack/pack.h"
#include "verify/faults.h"

typedef struct mp_check {
    const char *dir;
    const mp_verify_options *options;
    const mp_context *context;
    mp_faults faults;
    mp_verify_report *report; /* its counts are kept up here */

    mp_manifest manifest;
    mp_shape shape;
    bool *layers;      /* [manifest.num_layers]: selected for digest and exact */
    bool *ranks;       /* [ep_size]: selected */
    size_t num_layers; /* selected */

    mp_placement placement; /* of placement.json; map is null if that is no use */

    mp_meter meter; /* bytes of tensors */
} mp_check;

/* Reads the manifest. *usable: false when faults in it make everything else meaningless.
 * MP_ERR_INPUT where there is none, MP_ERR_UNSUPPORTED for an unknown target. */
int mp_check_open(mp_check *check, bool *usable, mp_error *err);
void mp_check_release(mp_check *check);

/* The set that tensor number `tensor` of a layer is in. */
const mp_slot_set *mp_check_set(const mp_check *check, unsigned tensor);
const mp_slot_tensor *mp_check_tensor(const mp_check *check, unsigned tensor);

/* Bytes of the tensor on a rank. */
uint64_t mp_check_tensor_bytes(const mp_check *check, unsigned tensor);

/* Fills the selections from the options' lists. MP_ERR_USAGE. */
int mp_check_select(mp_check *check, mp_error *err);

/* Checks placement.json and config.json, and that nothing else lies about. */
int mp_check_directory(mp_check *check, mp_error *err);

/* Adds to the progress and reports it. Thread-safe. */
void mp_check_advance(mp_check *check, uint64_t bytes);

/* A tensor that a rank has to hold. */
typedef struct mp_held {
    const mp_checkpoint *file; /* null: it is not there */
    const mp_tensor *tensor;
    const char *xxh3; /* as the manifest says, null if it does not */
    bool wanted;      /* not optional, or listed in the manifest */
    bool fits;        /* has the type and shape that the target wants */
} mp_held;

/* The files of a rank, open. */
typedef struct mp_rank {
    const mp_packed_rank *packed;
    char *dir;
    mp_checkpoint *files; /* [packed->num_files] */
    bool *open;           /* [packed->num_files]: that file could be read */
    mp_held *held;        /* [manifest.num_layers][num_tensors] */
} mp_rank;

/* Opens the files of a rank and checks their structure. */
int mp_rank_open(mp_rank *rank, mp_check *check, const mp_packed_rank *packed, mp_error *err);
void mp_rank_release(mp_rank *rank);

/* "layers.3.experts.l1_weight", malloc'ed; null without memory. */
char *mp_packed_tensor_name(const mp_check *check, size_t layer, unsigned tensor);

/* Whether a rank has to hold a tensor: all that are not optional, and of the others those that
 * its files are listed with. MP_ERR_IO without memory. */
int mp_rank_wants(const mp_check *check, const mp_packed_rank *packed, size_t layer,
                  unsigned tensor, bool *wants, mp_error *err);

/* Checks a rank's index file: its digest, and that it names every tensor of the rank. */
int mp_check_index(mp_check *check, const mp_rank *rank, mp_error *err);

/* Digests of the selected layers' tensors. */
int mp_check_digests(mp_check *check, const mp_rank *rank, mp_error *err);

/* Files by name, in structure.c: what several checks share. */

/* Whether DIR/NAME is there, and its size. What is no regular file is a fault, and
 * counts as not there; MP_ERR_IO when the system does not say. */
int mp_check_file(mp_check *check, const mp_spot *spot, const char *dir, const char *name,
                  uint64_t *size, bool *there, mp_error *err);

/* Reads DIR/NAME whole and compares its digest. text: malloc'ed, or null where it is
 * missing or does not have this digest, which is a fault then. */
int mp_check_text(mp_check *check, const mp_spot *spot, const char *dir, const char *name,
                  const char *xxh3, char **text, uint64_t *length, mp_error *err);

/* Makes a fault of every entry of DIR that known() does not know; false in *there if
 * there is no such directory. */
int mp_check_entries(mp_check *check, const mp_spot *spot, const char *dir,
                     bool (*known)(const void *user, const char *name), const void *user,
                     bool *there, mp_error *err);

#endif
