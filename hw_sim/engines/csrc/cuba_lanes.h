/* The kernel's vector code; included by cuba_levels.h once for every instruction set, with the operations as macros. LANES neurons
   make a block. */

#define INLINE static inline TARGET __attribute__((always_inline))
#define HALVES (LANES / WIDTH)

INLINE void NAME(clear)(ACC *acc)
{
    for (int i = 0; i < ACCS; i++) acc[i] = ACC_ZERO();
}

INLINE void NAME(add)(ACC *acc, const int16_t *row)
{
    for (int i = 0; i < ACCS; i++) acc[i] = ACC_ADD(acc[i], row + i * (LANES / ACCS));
}

/* The larger of `least` and any of the 16-bit numbers. */
INLINE int32_t NAME(raised)(int32_t least, ACC acc)
{
    int16_t found[LANES / ACCS];
    ACC_STORE(found, acc);
    for (int i = 0; i < LANES / ACCS; i++) least = found[i] > least ? found[i] : least;
    return least;
}

#include "cuba_pack.h"

#include "cuba_neurons.h"

#include "cuba_events.h"

#ifdef DOT
#include "cuba_dots.h"
#endif

#include "cuba_loop.h"

#include "cuba_tally.h"
