/* SPDX-License-Identifier: Apache-2.0 */
/* place/text.h - what texts and drawings of loads are written with. */
#ifndef MP_PLACE_TEXT_H
#define MP_PLACE_TEXT_H

#include <moepack/base.h>
#include <stdio.h>

/* A number with three decimals, "0.981", whatever the locale. Returns text. */
#define MP_THOUSANDTHS 32
char *mp_thousandths(double value, char text[MP_THOUSANDTHS]);

double mp_mean(const double *values, uint32_t count);

/* Mean over largest load; 1 when nothing is loaded. */
double mp_balance(const double *load, uint32_t ep);

#endif
