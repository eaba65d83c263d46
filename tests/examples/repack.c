/* SPDX-License-Identifier: Apache-2.0 */
/* The example of libmoepack(3): packs a checkpoint, checks the pack and looks into it. */
#include <moepack/moepack.h>
#include <stdio.h>

/* Lays the experts out for DeepGEMM's MegaMoE on two ranks, two of
 * them twice. */
static int pack(const char *source, const char *out, mp_error *err)
{
    mp_repack_options options = {
        .size = sizeof options,
        .target = mp_target_find("megamoe-w4a8"),
        .ep = 2,
        .redundant = 2,
        .shared = MP_SHARED_NONE,
    };

    return mp_repack(source, out, &options, NULL, err);
}

/* Holds every slot against the expert of the source that it has to be. */
static int check(const char *source, const char *out, mp_error *err)
{
    mp_verify_options options = {
        .size = sizeof options,
        .level = MP_VERIFY_EXACT,
        .source = source,
    };
    mp_verify_report report = {0};
    int rc = mp_verify(out, &options, NULL, &report, err);

    for (size_t i = 0; i < report.num_faults; i++)
        printf("%s\n", report.faults[i].detail);
    if (rc == 0 && report.total_faults > 0) {
        rc = MP_ERR_CHECK;
        snprintf(err->message, sizeof err->message, "%s: faults", out);
    }
    mp_verify_report_release(&report);
    return rc;
}

/* Says where the copies of an expert of the first layer are, and how
 * the packed weights of its gate and up begin. */
static int look(const char *out, uint32_t expert, mp_error *err)
{
    mp_pack *pack;
    int rc = mp_pack_open(&pack, out, NULL, NULL, err);

    if (rc != 0)
        return rc;
    const mp_slot_set *set = mp_shape_set(mp_pack_get(pack)->shape, expert);
    const mp_slot_tensor *w = mp_set_tensor(set, MP_L1, MP_ROLE_WEIGHT);
    uint32_t count;
    const mp_place *at = mp_pack_copies(pack, 0, expert, &count);

    for (uint32_t i = 0; i < count; i++) {
        unsigned char b[3];

        rc = mp_pack_read(pack, 0, at[i], set, w, 0, sizeof b, b, err);
        if (rc != 0)
            break;
        printf("rank %u, slot %u: ", at[i].rank, at[i].slot);
        printf("%02x %02x %02x\n", b[0], b[1], b[2]);
    }
    mp_pack_release(pack);
    return rc;
}

int main(int argc, char **argv)
{
    mp_error err;

    if (argc != 3) {
        fprintf(stderr, "usage: repack CHECKPOINT OUT\n");
        return 2;
    }
    const char *source = argv[1], *out = argv[2];
    int rc = pack(source, out, &err);

    if (rc == 0)
        rc = check(source, out, &err);
    if (rc == 0)
        rc = look(out, 0, &err);
    if (rc != 0)
        fprintf(stderr, "repack: %s\n", err.message);
    return -rc;
}
