/* SPDX-License-Identifier: Apache-2.0 */
/* Precisions that are mixed inside a layer, as some quantizers write them if single matrices are
 * sensitive. Each matrix could be read by itself, but a layer is packed in one format.
 *
 * Such a layer is refused as unsupported and not as broken, so this has to be told apart from a
 * faulty matrix: only one that is sound in itself can be of another format. Routed and shared
 * experts may differ, as they often do. One thread. */
#include "checkpoint/mixture.h"

#include "base/error.h"
#include "checkpoint/storage.h"

/* The matrix that gives a layer its format. */
typedef struct format {
    const mp_tensor *weight; /* null: none was found yet */
    mp_storage storage;
} format;

/* Formats of the same types of tensors are told by the shape of the scale alone, which is then
 * more likely to be wrong than of another format. */
static bool is_other(const mp_storage *a, const mp_storage *b)
{
    return a->scheme != b->scheme &&
           (a->weight_dtype != b->weight_dtype || a->has_scale != b->has_scale ||
            a->scale_dtype != b->scale_dtype || a->int4 != b->int4 ||
            a->has_global != b->has_global);
}

/* Whether a matrix, or what a fused tensor holds a slice of, is sound in itself. */
static bool is_sound(const mp_catalog *catalog, const mp_matrix *matrix, mp_fusion fusion,
                     mp_storage *storage)
{
    uint64_t rows, cols, slices = fusion == MP_FUSION_NONE ? 1 : matrix->weight->shape[0];
    mp_problems problems = {0};
    bool sound;

    if (!mp_storage_recognize(matrix, fusion, &catalog->config, storage, &rows, &cols) ||
        (storage->has_scale && !matrix->scale))
        return false;
    mp_storage_check(storage, matrix, slices, rows, cols, &problems);
    sound = problems.count == 0;
    mp_problems_release(&problems);
    return sound;
}

static int check_matrix(const mp_catalog *catalog, const mp_matrix *matrix, mp_fusion fusion,
                        format *first, mp_error *err)
{
    mp_storage storage;

    if (!matrix->weight || !is_sound(catalog, matrix, fusion, &storage))
        return 0;
    if (!first->weight)
        *first = (format){matrix->weight, storage};
    if (!is_other(&storage, &first->storage))
        return 0;
    return mp_fail(err, MP_ERR_UNSUPPORTED,
                   "%s: %s, but \"%s\" is %s: several formats in one layer are not supported",
                   matrix->weight->name, mp_scheme_name(storage.scheme), first->weight->name,
                   mp_scheme_name(first->storage.scheme));
}

int mp_layer_check_mixture(const mp_catalog *catalog, const mp_moe_layer *layer, mp_error *err)
{
    mp_fusion fusion = layer->storage.fusion;
    format routed = {0}, shared = {0};
    int rc = 0;

    for (int i = 0; fusion != MP_FUSION_NONE && i < 3 && rc == 0; i++)
        rc = check_matrix(catalog, &layer->fused[i], fusion, &routed, err);
    for (uint32_t e = 0; fusion == MP_FUSION_NONE && e < layer->num_experts; e++)
        for (int p = 0; p < MP_PROJECTIONS && rc == 0; p++)
            rc = check_matrix(catalog, &layer->experts[e].matrix[p], fusion, &routed, err);
    for (int p = 0; p < MP_PROJECTIONS && rc == 0; p++)
        rc = check_matrix(catalog, &layer->shared.matrix[p], MP_FUSION_NONE, &shared, err);
    return rc;
}
