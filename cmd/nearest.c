/* SPDX-License-Identifier: Apache-2.0 */
/* Knows how far apart two words are: Levenshtein's distance, one row at a time. */
#include "nearest.h"

#include <string.h>

#define WORD_MAX 32

void nearest_init(nearest *n, const char *word)
{
    size_t length = strlen(word);

    n->word = word;
    n->best = NULL;
    /* Two letters changed places are two slips; one more is forgiven in long words. */
    n->distance = length < 3 ? 2 : 3 + length / 8;
}

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Both words are at most WORD_MAX letters. */
static size_t distance(const char *a, size_t na, const char *b, size_t nb)
{
    size_t row[WORD_MAX + 1];

    for (size_t j = 0; j <= nb; j++)
        row[j] = j;
    for (size_t i = 1; i <= na; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = min_size(replaced, min_size(row[j], row[j - 1]) + 1);
        }
    }
    return row[nb];
}

void nearest_offer(nearest *n, const char *name)
{
    size_t word_length = strlen(n->word);
    size_t name_length = strlen(name);

    if (word_length > WORD_MAX || name_length > WORD_MAX)
        return;
    size_t d = distance(n->word, word_length, name, name_length);
    if (d < n->distance && d < name_length) {
        n->best = name;
        n->distance = d;
    }
}
