/* One layer of CUBA neurons over all time steps of one sample: events in, events out, exactly as arithmetic.py says.

   A layer runs in one of two ways. Most keep 16-bit sums and states in floats, in vectors (cuba_lanes.h). Where sums may be too
   large for that, everything is 64 bits wide and plain C (cuba_wide.h): slower, and without bounds on weights, biases and sums.

   Spikes travel as bits: word[pixel][group][plane][step], 32 channels of one pixel in a word, time contiguous. Planes hold the
   bits of graded payloads and of pooled counts. A layer without image is one pixel. For one output pixel and LANES of its
   channels u and v stay in registers while time runs; synapses are gathered: every set bit of the window adds one row of
   weights, in 16 bits, carried into 32 before they could overflow.

   States are floats that hold integers: rounding a product toward zero drops no bit of an integer below 2^24, so truncating
   it is exact (engines/native.py checks the bounds under which every value stays below). */

#include <fenv.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const uint32_t *in;     /* [in_h * in_w][groups][planes][steps] */
    uint32_t *out;          /* [out_h * out_w][blocks][steps] */
    const void *weight;     /* int16 [blocks][taps][rows][LANES], rows: planes * groups * 32 of lists, groups * 32 of words,
                               1 << (kw * channels) of tables, whose taps are kh; int32 where `wide`; where `narrow_weight`
                               bytes, rows of two blocks beside each other, see add_bytes */
    const int8_t *dot;      /* [blocks][taps][quads][LANES][4], or NULL: channels four by four */
    const void *bias;       /* float [blocks * LANES], times 64; int64 where `wide` */
    const void *registers;  /* float [out_h * out_w][blocks][keep_u, keep_v, threshold][LANES] of neurons that do not share them,
                               else NULL; where `wide` int64 of all layers, the decays taken from 4096 */
    const void *back;       /* weights of its own spikes, which arrive a step later: int16 [blocks][blocks * 32][LANES], int32
                               where `wide`; NULL: a layer without a loop */
    const uint16_t *delays; /* [blocks][inputs][LANES] where in the sums spikes arrive, steps of delay * LANES + lane; or NULL */
    void *state;            /* float [out_h * out_w][blocks][u, v][LANES] before and after, int64 where `wide`; or NULL: at rest */
    uint32_t *fired;        /* loops: [blocks] spikes of the last step, before and after, or NULL: none before */
    uint32_t *sent;         /* delays: [words of input][history] what arrived last, or NULL: nothing */
    int32_t *count;         /* [steps] spikes, added to */
    void *u, *v;            /* int32 [out_h * out_w][steps][blocks * LANES], int64 where `wide`, or NULL */
    int64_t *peak;          /* largest |sum| met, in units of `unit`, raised */
    const uint8_t *windows; /* tables: [in_h][steps][out_w], bits of a row of the window */
    const uint8_t *bytes;   /* dot: [in_h * in_w][steps][quads * 4] */
    const uint8_t *items;   /* lists: rows of weights of what is set in one pixel and step, 16 bytes to spare */
    const uint32_t *begin;  /* lists: [in_h * in_w][steps + 1] into `items`; dense: see list_events */
    const uint16_t *events; /* dense: rows of weights */
    const volatile int32_t *stop; /* not 0: give up */
    int32_t mode, steps, channels, groups, planes, blocks;
    int32_t outputs;        /* channels that exist */
    int32_t dense;          /* one output pixel that sees all that arrives */
    int32_t wide, negative; /* of inputs with a sign: planes from here on hold what is below 0; `planes` of others */
    int32_t back_flush, history; /* loops: as flush; delays: the longest */
    int32_t in_h, in_w, out_h, out_w, kh, kw, stride_y, stride_x, pad_y, pad_x, dil_y, dil_x;
    int32_t flush;          /* words and dense: rows of weights after which 16 bits are carried */
    int32_t quads, dot_flush; /* dot: of channels; and how many of them 16 bits take, 0: all */
    int32_t dot_above;      /* dot: pays off above this activity, per mille */
    int32_t narrow_weight, biased; /* of 0 and 1: rows of bytes (dense); bias */
    int32_t bound, calm_below, low_below; /* no |sum| is larger; states are CALM, or LOW at least, where none is larger than these */
    float keep_u, keep_v, threshold; /* (4096 - decay) / 4096; threshold times 64 */
    float unit;             /* what weights were divided by */
} layer_t;

/* What is counted of a layer besides its spikes, see cuba_tally.h. Arrays are [samples][steps], or NULL where they follow from
   spike counts. Geometry is that of the layer as it is, pooling in its kernel. */
typedef struct {
    int32_t *heard;          /* spikes that arrive */
    int64_t *reached;        /* convolutions: minus what spikes at the edges reach less than others; delays: outputs that spikes of
                                the last steps reach in time */
    int32_t *touched;        /* neurons that some spike reaches: convolutions and delays */
    uint32_t *sent;          /* [words][32] spikes of every input, those of the last `history` steps aside; of this thread */
    uint32_t *own;           /* loops: [blocks][32] spikes that come back; of this thread */
    int64_t *nonzero, *late; /* delays: weights not 0 and spikes, of the last steps; of this thread */
    const int32_t *paid;     /* [samples] steps */
    const int32_t *edge;     /* [edges] pixels that reach fewer outputs than others */
    const int32_t *reach;    /* [edges] how many fewer, a negative number */
    const int32_t *within;   /* delays: [inputs][history + 1][2] synapses that act in fewer steps, stored and not 0 */
    const int16_t *delay;    /* delays: [outputs][inputs] steps, -1: no synapse */
    int32_t edges, history, in_h, in_w, out_h, out_w, kh, kw, stride_y, stride_x, pad_y, pad_x, dil_y, dil_x;
} tally_t;

enum { WORDS, LISTS, TABLE };
enum { WIDE, NARROW, PAIRED, TABLED }; /* sums, see cuba_neurons.h */
enum { CALM, LOW, FULL, OWN };         /* what can happen to states, see there */

#define UNROLL _Pragma("GCC unroll 8")
#define LANES 32 /* neurons of a block: one word of spikes */
#define MAX_LIST 16384
#define MAX_TAPS 1024
#define COLUMN_LIST 8192
#define MAX_TALLIED 4096 /* steps */
#define MAX_COLUMNS 256
#define CHUNK 2048 /* words of input of dense layers: 16 bits number the rows of weights of one chunk */

static uint64_t bytes_of[256]; /* positions of the bits of a byte, a byte each */

/* What a bit of a plane is worth. */
static inline int32_t worth(const layer_t *l, int plane)
{
    return plane < l->negative ? (int32_t)1 << plane : -((int32_t)1 << (plane - l->negative));
}

/* Whether rows of outputs go by columns of the window. */
static inline int fits_columns(const layer_t *l)
{
    return l->kw == 3 && l->stride_x == 1 && l->dil_x == 1 && l->pad_x <= 2 && l->kh * l->groups * l->planes * 32 <= COLUMN_LIST;
}

static inline int dense_words(const layer_t *l) { return l->in_h * l->in_w * l->groups; }

#include "cuba_delays.h"
#include "cuba_levels.h"

#ifdef X86
static int compresses; /* the processor has AVX-512 VBMI2 */
#endif

/* Call once, before any thread. */
void knarr_start(void)
{
#ifdef X86
    __builtin_cpu_init();
    compresses = __builtin_cpu_supports("avx512vbmi2");
#endif
    for (int i = 0; i < 256; i++) {
        int n = 0;
        for (int b = 0; b < 8; b++)
            if (i >> b & 1) bytes_of[i] |= (uint64_t)b << (8 * n++);
    }
}

/* Which instructions this processor has and the library knows: 2 AVX-512, 1 AVX2, 0 none of them. */
int knarr_level(void)
{
#ifdef X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

#include "cuba_bits.h"
#include "cuba_wide.h"
#include "cuba_team.h"
#include "cuba_run.h"
