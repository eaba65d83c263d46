/* SPDX-License-Identifier: Apache-2.0 */
/* Samples that depend on the seed alone. */
#include "verify/sample.h"

#include "base/error.h"

/* Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Of those that are left, each is taken with the chance that makes all choices alike. */
int mp_sample_draw(const mp_verify_options *options, size_t layers, uint32_t experts, bool **sample,
                   mp_error *err)
{
    uint64_t state = options->seed;

    *sample = NULL;
    if (options->sample == 0 || options->sample >= experts)
        return 0;
    *sample = mp_alloc_zeroed(layers, experts * sizeof **sample);
    if (!*sample)
        return mp_fail_memory(err);
    for (size_t layer = 0; layer < layers; layer++) {
        uint32_t wanted = options->sample;

        for (uint32_t e = 0; e < experts; e++) {
            bool take = next_random(&state) % (experts - e) < wanted;

            (*sample)[layer * experts + e] = take;
            wanted -= take;
        }
    }
    return 0;
}
