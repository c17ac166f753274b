/* One layer of CUBA neurons over all time steps of one sample: events in, events out, exactly as arithmetic.py says.

   Spikes travel as bits: word[pixel][group][plane][step], 32 channels of one pixel in a word, time contiguous. Planes hold the
   bits of graded payloads and of pooled counts. A layer without image is one pixel. For one output pixel and LANES of its
   channels u and v stay in registers while time runs; synapses are gathered: every set bit of the window adds one row of
   weights, in 16 bits, carried into 32 before they could overflow.

   States are floats that hold integers: rounding a product toward zero drops no bit of an integer below 2^24, so truncating
   it is exact (fast_layer.py checks the bounds under which every value stays below). */

#include <fenv.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const uint32_t *in;     /* [in_h * in_w][groups][planes][steps] */
    uint32_t *out;          /* [out_h * out_w][blocks][steps] */
    const int16_t *weight;  /* [blocks][taps][rows][LANES], rows: planes * groups * 32 of lists, groups * 32 of words,
                               1 << (kw * channels) of tables, whose taps are kh; bytes where `narrow_weight`, see add_bytes */
    const int8_t *dot;      /* [blocks][taps][quads][LANES][4], or NULL: channels four by four */
    const float *bias;      /* [blocks * LANES], times 64 */
    float *state;           /* [out_h * out_w][blocks][u, v][LANES] before and after, or NULL: at rest before */
    int32_t *count;         /* [steps] spikes, added to */
    int32_t *u, *v;         /* [out_h * out_w][steps][blocks * LANES], or NULL */
    int32_t *peak;          /* largest |sum| met, in units of `unit`, raised */
    const uint8_t *windows; /* tables: [in_h][steps][out_w], bits of a row of the window */
    const uint8_t *bytes;   /* dot: [in_h * in_w][steps][quads * 4] */
    const uint8_t *items;   /* lists: rows of weights of what is set in one pixel and step, 16 bytes to spare */
    const uint32_t *begin;  /* lists: [in_h * in_w * steps + 1] into `items`; dense: [steps * planes + 1] into `events` */
    const int32_t *events;  /* dense: rows of weights */
    const volatile int32_t *stop; /* not 0: give up */
    int32_t mode, steps, channels, groups, planes, blocks;
    int32_t in_h, in_w, out_h, out_w, kh, kw, stride_y, stride_x, pad_y, pad_x, dil_y, dil_x;
    int32_t flush;          /* words and dense: rows of weights after which 16 bits are carried */
    int32_t quads, dot_flush; /* dot: of channels; and how many of them 16 bits take, 0: all */
    int32_t dot_above;      /* dot: pays off above this activity, per mille */
    int32_t narrow_weight, may_wrap, biased, may_clip; /* of 0 and 1: rows of bytes (dense); u can pass 2^23; bias; v can pass 2^23 */
    float keep_u, keep_v, threshold; /* (4096 - decay) / 4096; threshold times 64 */
    float unit;             /* what weights were divided by */
} layer_t;

enum { WORDS, LISTS, TABLE };

#define UNROLL _Pragma("GCC unroll 8")
#define LANES 32 /* neurons of a block: one word of spikes */
#define MAX_LIST 16384
#define MAX_TAPS 1024

static uint64_t bytes_of[256]; /* positions of the bits of a byte, a byte each */

/* Call once, before any thread. */
void knarr_start(void)
{
    for (int i = 0; i < 256; i++) {
        int n = 0;
        for (int b = 0; b < 8; b++)
            if (i >> b & 1) bytes_of[i] |= (uint64_t)b << (8 * n++);
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
#define X86
#include <immintrin.h>

static inline int four_of(const uint8_t *p)
{
    int four;
    memcpy(&four, p, 4);
    return four;
}

/* Compilers would rather load a row again for every use, and loads are what there are too few of. */
__attribute__((target("avx2"))) static inline __m256i held_256(__m256i a)
{
    __asm__("" : "+x"(a));
    return a;
}

__attribute__((target("avx512f"))) static inline __m512i held_512(__m512i a)
{
    __asm__("" : "+v"(a));
    return a;
}

__attribute__((target("avx2"))) static inline uint32_t word_of(const uint8_t *p)
{
    return (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(_mm256_loadu_si256((const __m256i *)p), 7));
}

__attribute__((target("avx2"))) static inline void spread_eight(int32_t *to, const uint64_t *from, int base)
{
    const __m256i eight = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
    _mm256_storeu_si256((__m256i *)to, _mm256_add_epi32(eight, _mm256_set1_epi32(base)));
}

#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define WIDTH 16
#define ACCS 1
#define ACC __m512i
#define HALF __m512
#define SUM __m512i
#define MASK __mmask16
#define ACC_ZERO() _mm512_setzero_si512()
#define ACC_ADD(a, p) _mm512_add_epi16(a, _mm512_loadu_si512(p))
#define ACC_LOAD(p) _mm512_loadu_si512(p)
#define ACC_ABS(a) _mm512_abs_epi16(a)
#define ACC_MAX(a, b) _mm512_max_epi16(a, b)
#define HELD(a) held_512(a)
#define FOUR(p) _mm512_set1_epi32(four_of(p))
#define DOT(a, x, w) _mm512_add_epi16(a, _mm512_maddubs_epi16(x, w))
#define DOT_SUM(a) _mm512_madd_epi16(a, _mm512_set1_epi16(1))
#define SUM_ADD(a, b) _mm512_add_epi32(a, b)
#define WORD_OF(p) word_of(p)
#define ROW __m256i
#define ROWS 1
#define ROW_ZERO() _mm256_setzero_si256()
#define ROW_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define ROW_STORE(p, a) _mm256_storeu_si256((__m256i *)(p), a)
#define ROW_ADD(a, b) _mm256_add_epi16(a, b)
#define ROW_HIGH(a) _mm256_srai_epi16(a, 8)
#define ROW_LOW(both, high, more) _mm256_sub_epi16(_mm256_sub_epi16(both, _mm256_slli_epi16(high, 8)), _mm256_set1_epi16(more))
#define SPREAD_EIGHT(to, from, base) spread_eight(to, from, base)
#define ACC_STORE(p, a) _mm512_storeu_si512(p, a)
#define SUM_ZERO() _mm512_setzero_si512()
#define SUM_MAX(a, b) _mm512_max_epi32(a, b)
#define SUM_ABS(a) _mm512_abs_epi32(a)
#define SUM_LOAD(p) _mm512_loadu_si512(p)
#define SUM_STORE(p, a) _mm512_storeu_si512(p, a)
#define WIDEN(p) _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)(p)))
#define SPREAD(to, from, base) \
    _mm256_storeu_si256((__m256i *)(to), _mm256_add_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(from))), _mm256_set1_epi16(base)))
#define TO_FLOAT(a) _mm512_cvtepi32_ps(a)
#define TO_INT(a) _mm512_cvttps_epi32(a)
#define SPLAT(x) _mm512_set1_ps(x)
#define LOAD(p) _mm512_loadu_ps(p)
#define STORE(p, a) _mm512_storeu_ps(p, a)
#define ADD(a, b) _mm512_add_ps(a, b)
#define MUL(a, b) _mm512_mul_ps(a, b)
#define MUL_ADD(a, b, c) _mm512_fmadd_ps(a, b, c)
#define MIN(a, b) _mm512_min_ps(a, b)
#define MAX(a, b) _mm512_max_ps(a, b)
#define TRUNCATE(a) _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)
#define ABOVE(a, b) _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ)
#define NOT_ABOVE(a, b) _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ)
#define ADD_WHERE(m, a, b) _mm512_mask_add_ps(a, m, a, b)
#define ZERO_WHERE(m, a) _mm512_maskz_mov_ps((__mmask16)~(m), a)
#define BITS(m) ((uint32_t)(m))
#include "cuba_lanes.h"
#include "cuba_undef.h"

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma,popcnt,bmi")))
#define WIDTH 8
#define ACCS 2
#define ACC __m256i
#define HALF __m256
#define SUM __m256i
#define MASK __m256
#define ACC_ZERO() _mm256_setzero_si256()
#define ACC_ADD(a, p) _mm256_add_epi16(a, _mm256_loadu_si256((const __m256i *)(p)))
#define ACC_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define ACC_ABS(a) _mm256_abs_epi16(a)
#define ACC_MAX(a, b) _mm256_max_epi16(a, b)
#define HELD(a) held_256(a)
#define FOUR(p) _mm256_set1_epi32(four_of(p))
#define DOT(a, x, w) _mm256_add_epi16(a, _mm256_maddubs_epi16(x, w))
#define DOT_SUM(a) _mm256_madd_epi16(a, _mm256_set1_epi16(1))
#define SUM_ADD(a, b) _mm256_add_epi32(a, b)
#define WORD_OF(p) word_of(p)
#define ROW __m256i
#define ROWS 1
#define ROW_ZERO() _mm256_setzero_si256()
#define ROW_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define ROW_STORE(p, a) _mm256_storeu_si256((__m256i *)(p), a)
#define ROW_ADD(a, b) _mm256_add_epi16(a, b)
#define ROW_HIGH(a) _mm256_srai_epi16(a, 8)
#define ROW_LOW(both, high, more) _mm256_sub_epi16(_mm256_sub_epi16(both, _mm256_slli_epi16(high, 8)), _mm256_set1_epi16(more))
#define SPREAD_EIGHT(to, from, base) spread_eight(to, from, base)
#define ACC_STORE(p, a) _mm256_storeu_si256((__m256i *)(p), a)
#define SUM_ZERO() _mm256_setzero_si256()
#define SUM_MAX(a, b) _mm256_max_epi32(a, b)
#define SUM_ABS(a) _mm256_abs_epi32(a)
#define SUM_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define SUM_STORE(p, a) _mm256_storeu_si256((__m256i *)(p), a)
#define WIDEN(p) _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(p)))
#define SPREAD(to, from, base) \
    _mm256_storeu_si256((__m256i *)(to), _mm256_add_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(from))), _mm256_set1_epi16(base)))
#define TO_FLOAT(a) _mm256_cvtepi32_ps(a)
#define TO_INT(a) _mm256_cvttps_epi32(a)
#define SPLAT(x) _mm256_set1_ps(x)
#define LOAD(p) _mm256_loadu_ps(p)
#define STORE(p, a) _mm256_storeu_ps(p, a)
#define ADD(a, b) _mm256_add_ps(a, b)
#define MUL(a, b) _mm256_mul_ps(a, b)
#define MUL_ADD(a, b, c) _mm256_fmadd_ps(a, b, c)
#define MIN(a, b) _mm256_min_ps(a, b)
#define MAX(a, b) _mm256_max_ps(a, b)
#define TRUNCATE(a) _mm256_round_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)
#define ABOVE(a, b) _mm256_cmp_ps(a, b, _CMP_GT_OQ)
#define NOT_ABOVE(a, b) _mm256_cmp_ps(a, b, _CMP_LE_OQ)
#define ADD_WHERE(m, a, b) _mm256_add_ps(a, _mm256_and_ps(m, b))
#define ZERO_WHERE(m, a) _mm256_andnot_ps(m, a)
#define BITS(m) ((uint32_t)_mm256_movemask_ps(m))
#include "cuba_lanes.h"
#include "cuba_undef.h"
#endif

/* Any processor: the compiler's own vectors. */
typedef int16_t plain_acc __attribute__((vector_size(16)));
typedef int16_t plain_four __attribute__((vector_size(8)));
typedef int32_t plain_sum __attribute__((vector_size(16)));
typedef float plain_half __attribute__((vector_size(16)));

#define PLAIN_LOAD(type, name)            \
    static inline type name(const void *p) \
    {                                     \
        type a;                           \
        memcpy(&a, p, sizeof a);          \
        return a;                         \
    }
PLAIN_LOAD(plain_acc, plain_load_acc)
PLAIN_LOAD(plain_four, plain_load_four)
PLAIN_LOAD(plain_sum, plain_load_sum)
PLAIN_LOAD(plain_half, plain_load_half)

static inline void plain_spread(uint16_t *to, const uint8_t *from, uint16_t base)
{
    for (int i = 0; i < 16; i++) to[i] = (uint16_t)(from[i] + base);
}

static inline void plain_spread_eight(int32_t *to, const uint64_t *from, int32_t base)
{
    for (int i = 0; i < 8; i++) to[i] = (int32_t)(*from >> (8 * i) & 255) + base;
}

/* Eight at a time. */
static inline uint32_t plain_word_of(const uint8_t *p)
{
    uint32_t word = 0;
    for (int c = 0; c < 32; c += 8) {
        uint64_t eight = 0;
        for (int i = 0; i < 8; i++) eight |= (uint64_t)p[c + i] << (8 * i);
        word |= (uint32_t)(eight * 0x0102040810204080u >> 56) << c;
    }
    return word;
}

static inline plain_sum plain_pick(plain_sum where, plain_sum a, plain_sum b) { return (a & where) | (b & ~where); }

static inline plain_acc plain_pick_acc(plain_acc where, plain_acc a, plain_acc b) { return (a & where) | (b & ~where); }

static inline plain_half plain_pick_half(plain_sum where, plain_half a, plain_half b)
{
    return (plain_half)plain_pick(where, (plain_sum)a, (plain_sum)b);
}

static inline uint32_t plain_bits(plain_sum where)
{
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) bits |= (uint32_t)(where[i] & 1) << i;
    return bits;
}

#define NAME(x) x##_plain
#define TARGET
#define WIDTH 4
#define ACCS 4
#define ACC plain_acc
#define HALF plain_half
#define SUM plain_sum
#define MASK plain_sum
#define ACC_ZERO() ((plain_acc){0})
#define ACC_ADD(a, p) ((a) + plain_load_acc(p))
#define ACC_LOAD(p) plain_load_acc(p)
#define ACC_ABS(a) plain_pick_acc((a) > 0, a, -(a))
#define ACC_MAX(a, b) plain_pick_acc((a) > (b), a, b)
#define WORD_OF(p) plain_word_of(p)
#define ROW plain_acc
#define ROWS 2
#define ROW_ZERO() ((plain_acc){0})
#define ROW_LOAD(p) plain_load_acc(p)
#define ROW_STORE(p, a)                         \
    do {                                        \
        const plain_acc stored = (a);           \
        memcpy(p, &stored, sizeof stored);      \
    } while (0)
#define ROW_ADD(a, b) ((a) + (b))
#define ROW_HIGH(a) ((a) >> 8)
#define ROW_LOW(both, high, more) ((both) - ((high) << 8) - (more))
#define SPREAD_EIGHT(to, from, base) plain_spread_eight(to, from, base)
#define ACC_STORE(p, a) memcpy(p, &(a), sizeof(plain_acc))
#define SUM_ZERO() ((plain_sum){0})
#define SUM_MAX(a, b) plain_pick((a) > (b), a, b)
#define SUM_ABS(a) plain_pick((a) > 0, a, -(a))
#define SUM_LOAD(p) plain_load_sum(p)
#define SUM_STORE(p, a)                   \
    do {                                  \
        const plain_sum stored = (a);     \
        memcpy(p, &stored, sizeof stored); \
    } while (0)
#define WIDEN(p) __builtin_convertvector(plain_load_four(p), plain_sum)
#define SPREAD(to, from, base) plain_spread(to, from, base)
#define TO_FLOAT(a) __builtin_convertvector(a, plain_half)
#define TO_INT(a) __builtin_convertvector(a, plain_sum)
#define SPLAT(x) ((plain_half){0} + (x))
#define LOAD(p) plain_load_half(p)
#define STORE(p, a)                          \
    do {                                     \
        const plain_half stored = (a);       \
        memcpy(p, &stored, sizeof stored);   \
    } while (0)
#define ADD(a, b) ((a) + (b))
#define MUL(a, b) ((a) * (b))
#define MUL_ADD(a, b, c) ((a) * (b) + (c))
#define MIN(a, b) plain_pick_half((a) < (b), a, b)
#define MAX(a, b) plain_pick_half((a) > (b), a, b)
#define TRUNCATE(a) TO_FLOAT(TO_INT(a))
#define ABOVE(a, b) ((a) > (b))
#define NOT_ABOVE(a, b) ((a) <= (b))
#define ADD_WHERE(m, a, b) ((a) + plain_pick_half(m, b, (plain_half){0}))
#define ZERO_WHERE(m, a) plain_pick_half(m, (plain_half){0}, a)
#define BITS(m) plain_bits(m)
#include "cuba_lanes.h"
#include "cuba_undef.h"

/* Which instructions this processor has: 2 AVX-512, 1 AVX2, 0 none of them. */
int knarr_level(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

#include "cuba_bits.h"

/* A layer of a network, and where what is recorded of it goes: [samples][steps]... or NULL. */
typedef struct {
    layer_t layer;   /* its pointers to inputs, lists and outputs are filled in here; states are [samples]... */
    int32_t dense;   /* one output pixel */
    int32_t pool;    /* 2x2 sum pooling of what arrives, map_h * map_w pixels of it */
    int32_t map_h, map_w;
    int32_t outputs; /* channels that exist */
    uint8_t *spikes; /* [samples][steps][outputs][pixels] */
    int32_t *counts; /* [samples][steps] */
    int32_t *u, *v;  /* [samples][pixels][steps][blocks * LANES] */
    int32_t *peak;   /* of this thread */
} stage_t;

/* What a thread works in. */
typedef struct {
    uint32_t *here, *there, *silence, *begin;
    uint8_t *items, *windows, *bytes;
    int32_t *events, *sums;
} desk_t;

enum { PLAIN, AVX2, AVX512 };
#ifdef X86
#define AT_LEVEL(level, name, ...)                     \
    do {                                               \
        if (level == AVX512) name##_avx512(__VA_ARGS__); \
        if (level == AVX2) name##_avx2(__VA_ARGS__);     \
        if (level == PLAIN) name##_plain(__VA_ARGS__);   \
    } while (0)
#else
#define AT_LEVEL(level, name, ...) name##_plain(__VA_ARGS__)
#endif

/* One layer of one sample: from desk->here to desk->there; `raw` are the bytes of the network's input where they will do. */
static void run_layer(layer_t *l, int dense, int level, const uint8_t *raw, desk_t *desk)
{
    const int pixels = l->in_h * l->in_w;
    l->in = desk->here, l->out = desk->there, l->begin = desk->begin, l->items = desk->items, l->windows = desk->windows;
    l->events = desk->events, l->bytes = desk->bytes;
#ifdef X86
    if (l->dot && level != PLAIN && activity(desk->here, pixels, l->channels, l->groups, l->planes, l->steps) > l->dot_above) {
        expand(desk->here, pixels, l->groups, l->planes, l->steps, l->quads, desk->bytes);
        if (level == AVX512) dotted_avx512(l, dense, desk->sums);
        if (level == AVX2) dotted_avx2(l, dense, desk->sums);
        return;
    }
#endif
    if (dense) {
        uint32_t most = 0;
#ifdef X86
        if (level == AVX512) most = list_events_avx512(l, desk->here, desk->events, desk->begin);
        if (level == AVX2) most = list_events_avx2(l, desk->here, desk->events, desk->begin);
#endif
        if (level == PLAIN) most = list_events_plain(l, desk->here, desk->events, desk->begin);
        AT_LEVEL(level, dense, l, l->planes == 1 && most <= (uint32_t)l->flush, desk->sums);
        return;
    }
    if (l->mode == LISTS)
        list_items(desk->here, pixels, l->groups, l->planes, l->steps, desk->items, desk->begin);
    else if (l->mode == TABLE && raw)
        windows_of_bytes(l, raw, desk->windows);
    else if (l->mode == TABLE)
        windows(l, desk->windows);
    AT_LEVEL(level, conv, l, desk->sums);
}

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

/* Room for the largest layer of a chain; 0 where there is none. */
static int set_up(desk_t *desk, const stage_t *stages, int n, size_t words, int steps)
{
    size_t items = 0, begins = 0, tables = 0, events = 0, bytes = 0;
    for (int i = 0; i < n; i++) {
        const layer_t *l = &stages[i].layer;
        const size_t in = (size_t)l->in_h * l->in_w, arriving = in * l->groups * l->planes * steps;
        words = most(words, most(arriving, (size_t)l->out_h * l->out_w * l->blocks * steps));
        if (l->dot) bytes = most(bytes, in * steps * l->quads * 4);
        if (stages[i].dense) {
            events = most(events, in * l->channels * l->planes * steps + 32);
            begins = most(begins, (size_t)steps * l->planes + 1);
        } else if (l->mode == LISTS) {
            items = most(items, in * l->channels * l->planes * steps + 32);
            begins = most(begins, in * steps + 1);
        } else if (l->mode == TABLE) {
            tables = most(tables, (size_t)l->in_h * l->out_w * steps);
        }
    }
    desk->here = malloc(words * 4), desk->there = malloc(words * 4), desk->silence = calloc(steps, 4);
    desk->begin = malloc(begins * 4 + 4), desk->items = malloc(items + 1), desk->windows = malloc(tables + 1);
    desk->bytes = malloc(bytes + 1), desk->events = malloc(events * 4 + 4), desk->sums = malloc(sizeof(int32_t) * LANES * steps);
    return desk->here && desk->there && desk->silence && desk->begin && desk->items && desk->windows && desk->bytes && desk->events
        && desk->sums;
}

static void clear_up(desk_t *desk)
{
    free(desk->here), free(desk->there), free(desk->silence), free(desk->begin), free(desk->items), free(desk->windows);
    free(desk->bytes), free(desk->events), free(desk->sums);
}

static void swap(desk_t *desk)
{
    uint32_t *here = desk->here;
    desk->here = desk->there;
    desk->there = here;
}

/* Samples from..to through a chain of layers; 0, or 1 when memory ran out, or 2 when `stop` was set meanwhile. */
int knarr_run(stage_t *stages, int n, const uint8_t *inputs, int bytes, int channels, int pixels, int planes, int steps, int from,
    int to, int level, const volatile int32_t *stop)
{
    desk_t desk;
    const int mode = fegetround();
    int failed = !set_up(&desk, stages, n, (size_t)pixels * ((channels + 31) / 32) * planes * steps, steps);
    const size_t per_sample = (size_t)steps * channels * pixels * bytes;
    const int spikes = bytes == 1 && planes == 1, by_table = spikes && !stages->dense && !stages->pool && stages->layer.mode == TABLE;
    fesetround(FE_TOWARDZERO);
    for (int s = from; s < to && !failed; s++) {
        const uint8_t *sample = inputs + per_sample * s;
        if (!by_table && spikes && pixels == 1)
            AT_LEVEL(level, pack_flat, sample, steps, channels, desk.here);
        else if (!by_table)
            pack(sample, bytes, steps, channels, pixels, planes, desk.here);
        for (int i = 0; i < n && !*stop; i++) {
            const stage_t *stage = &stages[i];
            layer_t l = stage->layer;
            const size_t out = (size_t)l.out_h * l.out_w, states = out * steps * l.blocks * LANES;
            if (stage->pool) {
                pool(desk.here, stage->map_h, stage->map_w, l.groups, steps, desk.silence, desk.there);
                swap(&desk);
            }
            l.count = stage->counts + (size_t)s * steps;
            l.u = stage->u ? stage->u + states * s : NULL;
            l.v = stage->u ? stage->v + states * s : NULL;
            if (l.state) l.state += out * l.blocks * 2 * LANES * s;
            l.peak = stage->peak, l.stop = stop;
            run_layer(&l, stage->dense, level, by_table && i == 0 ? sample : NULL, &desk);
            if (stage->spikes)
                unpack(desk.there, steps, stage->outputs, (int)out, stage->spikes + (size_t)s * steps * stage->outputs * out);
            swap(&desk);
        }
        if (*stop) failed = 2;
    }
    fesetround(mode);
    clear_up(&desk);
    return failed;
}
