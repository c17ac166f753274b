/* Payloads and spikes between bytes and bits, and 2x2 sums of bits; included by cuba_lanes.h. */

/* Payloads [steps][channels][pixels] of one or two bytes into words [pixels][groups][planes][steps], pixels first..last of them. */
TARGET __attribute__((noinline)) static void NAME(pack)(
    const uint8_t *x, int bytes, int steps, int channels, int pixels, int planes, int first, int last, uint32_t *words)
{
    const int groups = (channels + 31) / 32;
    const size_t per_pixel = (size_t)groups * planes * steps;
    for (int from = first; from < last; from += 32) {
        const int many = last - from < 32 ? last - from : 32;
        for (int g = 0; g < groups; g++) {
            const int here = channels - g * 32 < 32 ? channels - g * 32 : 32;
            for (int p = 0; p < planes; p++) {
                uint32_t *word = words + from * per_pixel + ((size_t)g * planes + p) * steps;
                for (int t = 0; t < steps; t++) {
                    uint32_t square[32] = {0};
                    for (int c = 0; c < here; c++) {
                        const uint8_t *row = x + (((size_t)t * channels + g * 32 + c) * pixels + from) * bytes;
                        if (bytes == 1 && many == 32)
                            square[c] = WORD_OF(row, p);
                        else
                            for (int i = 0; i < many; i++) square[c] |= (uint32_t)(row[i * bytes + p / 8] >> p % 8 & 1) << i;
                    }
                    transpose_bits(square);
                    for (int i = 0; i < many; i++) word[i * per_pixel + t] = square[i];
                }
            }
        }
    }
}

/* Words [pixels][groups][steps] into bytes [steps][channels][pixels], pixels first..last of them. */
TARGET __attribute__((noinline)) static void NAME(unpack)(
    const uint32_t *words, int steps, int channels, int pixels, int first, int last, uint8_t *out)
{
    const size_t per_pixel = (size_t)((channels + 31) / 32) * steps;
    if (pixels == 1) {
        for (int t = 0; first < last && t < steps; t++)
            for (int c = 0; c < channels; c += 32) {
                uint8_t row[32];
                BYTES_OF(row, words[(size_t)(c / 32) * steps + t]);
                memcpy(out + (size_t)t * channels + c, row, channels - c < 32 ? channels - c : 32);
            }
        return;
    }
    for (int from = first; from < last; from += 32) {
        const int many = last - from < 32 ? last - from : 32;
        for (int group = 0; group < channels; group += 32)
            for (int t = 0; t < steps; t++) {
                uint32_t square[32] = {0};
                for (int i = 0; i < many; i++) square[i] = words[(from + i) * per_pixel + (size_t)(group / 32) * steps + t];
                transpose_bits(square);
                for (int c = group; c < channels && c < group + 32; c++) {
                    uint8_t row[32], *to = out + ((size_t)t * channels + c) * pixels + from;
                    BYTES_OF(row, square[c - group]);
                    memcpy(to, row, (size_t)many);
                }
            }
    }
}

/* Bytes 0 or 1 [steps][channels] into words [groups][steps]. */
TARGET __attribute__((noinline)) static void NAME(pack_flat)(const uint8_t *x, int steps, int channels, uint32_t *words)
{
    for (int t = 0; t < steps; t++) {
        const uint8_t *row = x + (size_t)t * channels;
        int c = 0;
        for (; c + 32 <= channels; c += 32) words[(size_t)(c / 32) * steps + t] = WORD_OF(row + c, 0);
        uint32_t word = 0;
        for (int i = c; i < channels; i++) word |= (uint32_t)row[i] << (i - c);
        if (c < channels) words[(size_t)(c / 32) * steps + t] = word;
    }
}

/* Words [steps] of up to four pixels to the three planes of their sum 0..4. */
INLINE void NAME(pool_pixel)(const uint32_t *a, const uint32_t *b, const uint32_t *c, const uint32_t *d, uint32_t *to, int steps)
{
    for (int t = 0; t < steps; t++) {
        const uint32_t ab = a[t] ^ b[t], cd = c[t] ^ d[t], two = a[t] & b[t], four = c[t] & d[t], both = ab & cd;
        to[t] = ab ^ cd;
        to[steps + t] = two ^ four ^ both;
        to[2 * steps + t] = (two & four) | (both & (two ^ four));
    }
}

/* 2x2 sum pooling of words [h * w][groups][steps] to planes [ceil(h/2) * ceil(w/2)][groups][3][steps]; rows first..last; beyond is silence. */
TARGET __attribute__((noinline)) static void NAME(pool)(
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
                NAME(pool_pixel)(from[0], from[1], from[2], from[3], out + ((((size_t)y * wide + x) * groups + g) * 3) * steps, steps);
            }
}
