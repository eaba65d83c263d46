/* SPDX-License-Identifier: Apache-2.0 */
/* forward/layer_router.h - which layer, and how a router's weights lie in memory: as products
 * take them. */
#ifndef MP_FORWARD_LAYER_ROUTER_H
#define MP_FORWARD_LAYER_ROUTER_H

#include "base/error.h"
#include "forward/product.h"
#include "forward/reference.h"

/* Numbers of a row of router->gate, and its rows. */
static inline uint64_t mp_gate_stride(const mp_layer_router *r)
{
    return mp_round_up(r->hidden_size, MP_PRODUCT_COLS);
}

static inline uint64_t mp_gate_rows(const mp_layer_router *r)
{
    return mp_round_up(r->router.num_experts, MP_PRODUCT_ROWS);
}

#endif
