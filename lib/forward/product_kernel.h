/* SPDX-License-Identifier: Apache-2.0 */
/* forward/product_kernel.h - the loops of a product, for one element type and one
 * instruction set. Included once for each, with these macros, which it undefines:
 *
 *   KERNEL       name of the function
 *   NUMBER       float or double
 *   LANES        16 or 8, in a
 *   VECTOR       for which there are
 *   ZERO, LOAD, FMA, SUM: zero(), load(p), fma(a, b, c) = a * b + c, sum(v)
 *   TARGET       attribute of functions
 *   WIDE         defined: blocks of 6 rows of x, else of 3; there are two accumulators each
 */
#ifdef WIDE
#define BLOCK        6
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#else
#define BLOCK        3
#define EACH_ROW(DO) DO(0) DO(1) DO(2)
#endif

#define PASTE(a, b)  a##b
#define NAME(a, b)   PASTE(a, b)
#define BLOCK_KERNEL NAME(KERNEL, _block)
#define PANEL        (MP_PANEL_BYTES / sizeof(NUMBER))

#define BEGIN(i)               \
    const NUMBER *x##i = x[i]; \
    VECTOR even##i = ZERO(), odd##i = ZERO();
#define STEP(i)                        \
    {                                  \
        VECTOR v = LOAD(x##i + k);     \
        even##i = FMA(v, w0, even##i); \
        odd##i = FMA(v, w1, odd##i);   \
    }
#define STORE(i)               \
    sums[i][0] = SUM(even##i); \
    sums[i][1] = SUM(odd##i);

/* BLOCK rows of x times two of w, in the columns of one panel. */
TARGET static void BLOCK_KERNEL(const NUMBER *const *x, const NUMBER *even, const NUMBER *odd,
                                size_t cols, NUMBER sums[BLOCK][2])
{
    EACH_ROW(BEGIN)
    for (size_t k = 0; k < cols; k += LANES) {
        VECTOR w0 = LOAD(even + k), w1 = LOAD(odd + k);

        EACH_ROW(STEP)
    }
    EACH_ROW(STORE)
}

/* The rows of x of a block stay in the nearest cache while all of w passes by. A block that
 * is not full repeats its last row. */
TARGET static void KERNEL(const NUMBER *const *x, size_t m, const NUMBER *w, size_t n, size_t k,
                          NUMBER *out)
{
    const NUMBER *rows[BLOCK];
    NUMBER sums[BLOCK][2];

    for (size_t k0 = 0; k0 < k; k0 += PANEL) {
        size_t cols = k - k0 < PANEL ? k - k0 : PANEL;

        for (size_t i0 = 0; i0 < m; i0 += BLOCK) {
            size_t count = m - i0 < BLOCK ? m - i0 : BLOCK;

            for (size_t i = 0; i < BLOCK; i++)
                rows[i] = x[i0 + (i < count ? i : count - 1)] + k0;
            for (size_t j = 0; j < n; j += 2) {
                BLOCK_KERNEL(rows, w + j * k + k0, w + (j + 1) * k + k0, cols, sums);
                for (size_t i = 0; i < count; i++) {
                    NUMBER *to = out + (i0 + i) * n + j;

                    to[0] = k0 == 0 ? sums[i][0] : to[0] + sums[i][0];
                    to[1] = k0 == 0 ? sums[i][1] : to[1] + sums[i][1];
                }
            }
        }
    }
}

#undef BLOCK
#undef EACH_ROW
#undef PASTE
#undef NAME
#undef BLOCK_KERNEL
#undef PANEL
#undef BEGIN
#undef STEP
#undef STORE
#undef KERNEL
#undef NUMBER
#undef LANES
#undef VECTOR
#undef ZERO
#undef LOAD
#undef FMA
#undef SUM
