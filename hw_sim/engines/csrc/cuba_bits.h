/* Spikes as bits and as lists; included by cuba.c. */

/* Words [steps] of up to four pixels to the three planes of their sum 0..4. */
static void pool_pixel(const uint32_t *a, const uint32_t *b, const uint32_t *c, const uint32_t *d, uint32_t *to, int steps)
{
    for (int t = 0; t < steps; t++) {
        const uint32_t ab = a[t] ^ b[t], cd = c[t] ^ d[t], two = a[t] & b[t], four = c[t] & d[t], both = ab & cd;
        to[t] = ab ^ cd;
        to[steps + t] = two ^ four ^ both;
        to[2 * steps + t] = (two & four) | (both & (two ^ four));
    }
}

/* 2x2 sum pooling of words [h * w][groups][steps] to planes [ceil(h/2) * ceil(w/2)][groups][3][steps]; rows first..last; beyond is silence. */
static void pool(
    const uint32_t *in, int h, int w, int groups, int steps, int first, int last, const uint32_t *silence, uint32_t *out)
{
    const int wide = (w + 1) / 2;
    for (int y = first; y < last; y++)
        for (int x = 0; x < wide; x++)
            for (int g = 0; g < groups; g++) {
                const uint32_t *from[4];
                for (int i = 0; i < 4; i++) {
                    const int iy = 2 * y + i / 2, ix = 2 * x + i % 2;
                    from[i] = iy < h && ix < w ? in + (((size_t)iy * w + ix) * groups + g) * steps : silence;
                }
                pool_pixel(from[0], from[1], from[2], from[3], out + ((((size_t)y * wide + x) * groups + g) * 3) * steps, steps);
            }
}

/* Tables: bits of every row of the window, [in_h][steps][out_w], kw * channels of them, from words of one group and plane. */
static void windows(const layer_t *l, int first, int last, uint8_t *out)
{
    const int T = l->steps;
    memset(out + (size_t)first * T * l->out_w, 0, (size_t)(last - first) * T * l->out_w);
    for (int y = first; y < last; y++)
        for (int kx = 0; kx < l->kw; kx++)
            for (int ox = 0; ox < l->out_w; ox++) {
                const int x = ox * l->stride_x - l->pad_x + kx * l->dil_x;
                if (x < 0 || x >= l->in_w) continue;
                const uint32_t *word = l->in + ((size_t)y * l->in_w + x) * T;
                uint8_t *to = out + (size_t)y * T * l->out_w + ox;
                for (int t = 0; t < T; t++) to[(size_t)t * l->out_w] |= (uint8_t)(word[t] << (kx * l->channels));
            }
}

/* The same from bytes 0 or 1 [steps][channels][in_h][in_w]. */
static void windows_of_bytes(const layer_t *l, const uint8_t *in, int first, int last, uint8_t *out)
{
    const int step = l->stride_x;
    memset(out + (size_t)first * l->steps * l->out_w, 0, (size_t)(last - first) * l->steps * l->out_w);
    for (int y = first; y < last; y++)
        for (int t = 0; t < l->steps; t++)
            for (int c = 0; c < l->channels; c++) {
                const uint8_t *row = in + (((size_t)t * l->channels + c) * l->in_h + y) * l->in_w;
                uint8_t *to = out + ((size_t)y * l->steps + t) * l->out_w;
                for (int kx = 0; kx < l->kw; kx++) {
                    const int shift = kx * l->dil_x - l->pad_x, from = shift < 0 ? (-shift + step - 1) / step : 0;
                    const int last = (l->in_w - 1 - shift) / step, until = l->in_w - 1 < shift ? 0 : last + 1 < l->out_w ? last + 1 : l->out_w;
                    const uint8_t bit = (uint8_t)(1 << (kx * l->channels + c));
                    if (step == 1)
                        for (int ox = from; ox < until; ox++) to[ox] |= (uint8_t)-row[ox + shift] & bit;
                    else
                        for (int ox = from; ox < until; ox++) to[ox] |= (uint8_t)-row[ox * step + shift] & bit;
                }
            }
}

/* Lists: rows of weights of what is set in pixels first..last, one step after the other from items + n on, with 16 bytes to
   spare; `begin` is [pixels][steps + 1]. */
static void list_items(
    const uint32_t *words, int first, int last, int groups, int planes, int steps, size_t n, uint8_t *items, uint32_t *begin)
{
    for (int i = first; i < last; i++) {
        for (int t = 0; t < steps; t++) {
            begin[(size_t)i * (steps + 1) + t] = (uint32_t)n;
            for (int g = 0; g < groups * planes; g++) {
                const uint32_t word = words[((size_t)i * groups * planes + g) * steps + t];
                if (!word) continue;
                const int row = g % planes * groups * 32 + g / planes * 32;
                for (int b = 0; b < 4; b++) {
                    const unsigned byte = word >> (8 * b) & 255;
                    const uint64_t rows = bytes_of[byte] + 0x0101010101010101u * (uint64_t)(row + 8 * b);
                    memcpy(items + n, &rows, 8);
                    n += __builtin_popcount(byte);
                }
            }
        }
        begin[(size_t)i * (steps + 1) + steps] = (uint32_t)n;
    }
}

#ifdef X86
/* Of all pixels and channels, how many are not 0, per mille; every eighth pixel is looked at. */
static int activity(const uint32_t *words, int pixels, int channels, int groups, int planes, int steps)
{
    uint64_t set = 0, seen = 0;
    for (int i = 0; i < pixels; i += 8) {
        for (int g = 0; g < groups; g++) {
            const uint32_t *word = words + ((size_t)i * groups + g) * planes * steps;
            for (int t = 0; t < steps; t++) {
                uint32_t any = 0;
                for (int p = 0; p < planes; p++) any |= word[(size_t)p * steps + t];
                set += (uint64_t)__builtin_popcount(any);
            }
        }
        seen += (uint64_t)channels * steps;
    }
    return (int)(set * 1000 / seen);
}

/* Words [pixels][groups][planes][steps] into bytes [pixels][steps][quads * 4], pixels first..last of them. */
__attribute__((target("avx2"))) static void expand(
    const uint32_t *words, int first, int last, int groups, int planes, int steps, int quads, uint8_t *out)
{
    for (int i = first; i < last; i++)
        for (int g = 0; g < groups; g++) {
            const uint32_t *word = words + ((size_t)i * groups + g) * planes * steps;
            const int many = quads * 4 - g * 32 < 32 ? quads * 4 - g * 32 : 32;
            for (int t = 0; t < steps; t++) {
                __m256i sum = _mm256_setzero_si256();
                for (int p = 0; p < planes; p++) {
                    const __m256i plane = _mm256_set1_epi8((char)(1 << p));
                    sum = _mm256_or_si256(sum, _mm256_and_si256(spread_bits(word[(size_t)p * steps + t]), plane));
                }
                uint8_t *to = out + ((size_t)i * steps + t) * quads * 4 + g * 32;
                if (many == 32) {
                    _mm256_storeu_si256((__m256i *)to, sum);
                } else {
                    uint8_t all[32];
                    _mm256_storeu_si256((__m256i *)all, sum);
                    memcpy(to, all, (size_t)many);
                }
            }
        }
}
#endif
