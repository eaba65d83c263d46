/* SPDX-License-Identifier: Apache-2.0 */
/* Loads a rank of a pack: prints its tensors, and a digest of what was read of each. */
#include <inttypes.h>
#include <moepack/moepack.h>
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>

/* Reads a tensor piece by piece, where an engine would copy it to its device. */
static int load(const mp_checkpoint *rank, const mp_tensor *tensor, XXH3_state_t *state,
                mp_error *err)
{
    static unsigned char piece[1 << 20];
    char shape[MP_SHAPE_TEXT];

    XXH3_128bits_reset(state);
    for (uint64_t at = 0; at < tensor->bytes; at += sizeof piece) {
        uint64_t left = tensor->bytes - at, n = left < sizeof piece ? left : sizeof piece;

        if (mp_tensor_read(rank, tensor, at, n, piece, err) != 0)
            return err->code;
        XXH3_128bits_update(state, piece, n);
    }
    XXH128_hash_t digest = XXH3_128bits_digest(state);
    printf("%s %s %s %016" PRIx64 "%016" PRIx64 "\n", tensor->name, mp_dtype_name(tensor->dtype),
           mp_shape_text(tensor->shape, tensor->rank, shape), (uint64_t)digest.high64,
           (uint64_t)digest.low64);
    return 0;
}

/* All tensors of a layer: of the experts, then of shared experts that are apart. */
static int load_layer(const mp_pack *pack, size_t layer, uint32_t rank, XXH3_state_t *state,
                      mp_error *err)
{
    const mp_shape *shape = mp_pack_get(pack)->shape;

    for (unsigned s = 0; s < shape->num_sets; s++) {
        const mp_slot_set *set = &shape->sets[s];

        for (unsigned t = 0; t < set->num_tensors; t++) {
            const mp_tensor *tensor = mp_pack_tensor(pack, layer, rank, set, &set->tensors[t]);

            /* Optional ones need not be there. */
            if (tensor && load(mp_pack_rank(pack, rank), tensor, state, err) != 0)
                return err->code;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    XXH3_state_t *state = XXH3_createState();
    mp_pack *pack;
    mp_error err;

    if (argc != 3 || !state) {
        fprintf(stderr, argc != 3 ? "usage: load_rank PACK RANK\n" : "load_rank: no memory\n");
        return 2;
    }
    /* Of the other ranks, nothing is opened. */
    mp_pack_options options = {.size = sizeof options, .ranks = argv[2]};
    int rc = mp_pack_open(&pack, argv[1], &options, NULL, &err);
    uint32_t rank = (uint32_t)strtoul(argv[2], NULL, 10);

    for (size_t layer = 0; rc == 0 && layer < mp_pack_get(pack)->manifest->num_layers; layer++)
        rc = load_layer(pack, layer, rank, state, &err);
    if (rc != 0)
        fprintf(stderr, "load_rank: %s\n", err.message);
    mp_pack_release(pack);
    XXH3_freeState(state);
    return rc == 0 ? 0 : 1;
}
