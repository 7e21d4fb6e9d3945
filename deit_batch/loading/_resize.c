/* The part of decoding that is compiled: resizes pixels of red, green and blue with the integers of Pillow, to the
   bit.

   Pillow's method (src/libImaging/Resample.c, for 8 bits): each row is resized and rounded, then each column. A value is
   a sum of pixels by weights, which are whole numbers of 22 bits after the point. That sum is the same in any order, so
   it is taken of many values at a time here, in a loop that compilers turn into vector instructions (-O3). What is in
   floating point, the weights, is computed by the same operations in the same order. turbo.py has the result compared
   with Pillow's before it is used. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000 /* Python 3.11 and later: one binary for all of them */
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Two versions of a function, of which the faster one that the processor can run is taken. */
#if defined(__x86_64__) && defined(__GLIBC__) && (!defined(__clang__) || __clang_major__ >= 14)
#define FOR_SEVERAL_PROCESSORS __attribute__((target_clones("avx2", "default")))
#else
#define FOR_SEVERAL_PROCESSORS
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

enum {
    CHANNELS = 3,           /* red, green, blue */
    ROWS = 16,              /* that are resized together */
    LANES = ROWS * CHANNELS, /* values that are computed together */
    PRECISION = 22,         /* bits of a weight after the point */
    LONGEST_SIDE = 65535,   /* a JPEG has no more; and nothing below overflows 32 bits */
};

/* --- weights ---------------------------------------------------------------------------------------------------- */

typedef struct {
    double (*weight)(double);
    double support;
} Filter;

static double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

static double bilinear(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double hamming(double x)
{
    x = fabs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    x = x * M_PI;
    return sin(x) / x * (0.54f + 0.46f * cos(x));
}

static double bicubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double sinc(double x)
{
    if (x == 0.0) return 1.0;
    x = x * M_PI;
    return sin(x) / x;
}

static double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

/* By Pillow's numbers; 0, the nearest pixel, is no filter. */
static const Filter FILTERS[] = {
    {NULL, 0.0}, {lanczos, 3.0}, {bilinear, 1.0}, {bicubic, 2.0}, {box, 0.5}, {hamming, 1.0},
};

/* Of each result along one side: the pixels that it is a sum of, `count` from `first` on, and their weights, of which
   each result has room for `most`. All of them need `needed` pixels, and `first` counts from `begin`, the first that is
   needed. */
typedef struct {
    int *first, *count;
    int32_t *weights;
    int most, begin, needed;
} Taps;

static void free_taps(Taps *taps)
{
    free(taps->first);
    free(taps->count);
    free(taps->weights);
}

/* For the results begin .. begin + length of a side that goes from `from` pixels to `to`. Returns 0 without memory. */
static int make_taps(Taps *taps, const Filter *filter, int from, int to, int begin, int length)
{
    double scale = (double)from / to;
    double stretch = scale < 1.0 ? 1.0 : scale;
    double support = filter->support * stretch;
    double per_pixel = 1.0 / stretch;
    taps->most = (int)ceil(support) * 2 + 1;
    taps->first = calloc(length, sizeof(int));
    taps->count = calloc(length, sizeof(int));
    taps->weights = calloc((size_t)length * taps->most, sizeof(int32_t));
    double *exact = calloc(taps->most, sizeof(double));
    int has_memory = taps->first && taps->count && taps->weights && exact;
    for (int i = 0; has_memory && i < length; i++) {
        double center = (begin + i + 0.5) * scale;
        int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
        if (first < 0) first = 0;
        if (end > from) end = from;
        double sum = 0.0;
        for (int j = 0; j < end - first; j++) {
            exact[j] = filter->weight((j + first - center + 0.5) * per_pixel);
            sum += exact[j];
        }
        for (int j = 0; j < end - first; j++) {
            double weight = (sum != 0.0 ? exact[j] / sum : exact[j]) * (1 << PRECISION);
            taps->weights[(size_t)i * taps->most + j] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
        if (i == 0) taps->begin = first;
        taps->first[i] = first - taps->begin;
        taps->count[i] = end - first;
        taps->needed = end - taps->begin;
    }
    free(exact);
    return has_memory;
}

/* --- pixels ----------------------------------------------------------------------------------------------------- */

/* Sums of `count` values, which lie `step` apart, rounded to 0..255: of `lanes` values side by side. */
INLINE void blend(const uint8_t *restrict source, size_t step, const int32_t *restrict weights, int count,
                  uint8_t *restrict result, int lanes)
{
    int32_t sums[LANES];
    for (int lane = 0; lane < lanes; lane++) sums[lane] = 1 << (PRECISION - 1);
    for (int i = 0; i < count; i++)
        for (int lane = 0; lane < lanes; lane++) sums[lane] += source[i * step + lane] * weights[i];
    for (int lane = 0; lane < lanes; lane++) {
        int32_t value = sums[lane] >> PRECISION;
        result[lane] = value < 0 ? 0 : value > 255 ? 255 : value;
    }
}

/* A pixel; and one with the byte behind it, in one step instead of two, where that byte is written anew afterwards. */
INLINE void copy(uint8_t *to, const uint8_t *from) { memcpy(to, from, CHANNELS); }

INLINE void copy_more(uint8_t *to, const uint8_t *from) { memcpy(to, from, CHANNELS + 1); }

/* `height` rows to rows of `width` pixels; rows lie `from` and `to` bytes apart. ROWS of them are resized together:
   `group` has room for what is needed of them, and holds the leftmost pixel of each, then the next of each. */
FOR_SEVERAL_PROCESSORS
static void resize_rows(const uint8_t *source, size_t from, const Taps *taps, uint8_t *group, uint8_t *target, size_t to,
                        int width, int height)
{
    for (int y = 0; y < height; y += ROWS) {
        const uint8_t *in[ROWS];
        uint8_t *out[ROWS];
        for (int row = 0; row < ROWS; row++) {
            size_t one = y + row < height ? y + row : height - 1; /* the last one several times, to the same result */
            in[row] = source + one * from;
            out[row] = target + one * to;
        }
        size_t last = taps->needed - 1;
        for (size_t x = 0; x < last; x++)
            for (int row = 0; row < ROWS; row++) copy_more(group + x * LANES + row * CHANNELS, in[row] + x * CHANNELS);
        for (int row = 0; row < ROWS; row++) copy(group + last * LANES + row * CHANNELS, in[row] + last * CHANNELS);
        for (size_t x = 0; x < (size_t)width; x++) {
            uint8_t pixels[LANES + 1] = {0};
            blend(group + (size_t)taps->first[x] * LANES, LANES, taps->weights + x * taps->most, taps->count[x], pixels,
                  LANES);
            if (x + 1 < (size_t)width)
                for (int row = 0; row < ROWS; row++) copy_more(out[row] + x * CHANNELS, pixels + row * CHANNELS);
            else
                for (int row = 0; row < ROWS; row++) copy(out[row] + x * CHANNELS, pixels + row * CHANNELS);
        }
    }
}

/* Rows of `width` values to `height` rows of them; rows lie `from` and `to` bytes apart. */
FOR_SEVERAL_PROCESSORS
static void resize_columns(const uint8_t *source, size_t from, const Taps *taps, uint8_t *target, size_t to, size_t width,
                           int height)
{
    for (size_t y = 0; y < (size_t)height; y++) {
        const uint8_t *rows = source + taps->first[y] * from;
        const int32_t *weights = taps->weights + y * taps->most;
        size_t x = 0;
        for (; x + LANES <= width; x += LANES)
            blend(rows + x, from, weights, taps->count[y], target + y * to + x, LANES);
        if (x < width) blend(rows + x, from, weights, taps->count[y], target + y * to + x, width - x);
    }
}

/* --- Python ------------------------------------------------------------------------------------------------------ */

typedef struct {
    int width, height;
} Size;

typedef struct {
    int left, top, width, height;
} Window;

/* As Pillow's, whose order the rounding between the two steps makes a part of the result. */
static int takes_columns_first(Size size, Size resized)
{
    int lower = size.height - resized.height, narrower = size.width - resized.width;
    return lower > 0 && lower > 2 * narrower;
}

/* What `resize` needs to lay things down in, at the most: some rows side by side, and what is between the two steps. */
static int64_t scratch_bytes(Size size, Size resized, Window window)
{
    int64_t between = takes_columns_first(size, resized) ? (int64_t)size.width * window.height
                                                         : (int64_t)window.width * size.height;
    return (int64_t)size.width * LANES + between * CHANNELS;
}

/* Returns 0 without memory. */
static int resize(const uint8_t *source, Size size, Size resized, const Filter *filter, Window window, uint8_t *target,
                  uint8_t *scratch)
{
    Taps columns = {0}, rows = {0};
    int has_memory = make_taps(&columns, filter, size.width, resized.width, window.left, window.width)
        && make_taps(&rows, filter, size.height, resized.height, window.top, window.height);
    if (has_memory) {
        size_t from = (size_t)size.width * CHANNELS, to = (size_t)window.width * CHANNELS;
        uint8_t *group = scratch, *middle = group + (size_t)size.width * LANES;
        source += rows.begin * from + (size_t)columns.begin * CHANNELS;
        if (takes_columns_first(size, resized)) {
            size_t between = (size_t)columns.needed * CHANNELS;
            resize_columns(source, from, &rows, middle, between, between, window.height);
            resize_rows(middle, between, &columns, group, target, to, window.width, window.height);
        } else {
            resize_rows(source, from, &columns, group, middle, to, window.width, rows.needed);
            resize_columns(middle, to, &rows, target, to, to, window.height);
        }
    }
    free_taps(&columns);
    free_taps(&rows);
    return has_memory;
}

static int is_side(int side) { return 1 <= side && side <= LONGEST_SIDE; }

/* Whether all of it lies in memory that the caller has. */
static int is_possible(Size size, Size resized, int filter, Window window, Py_ssize_t source, Py_ssize_t target,
                       Py_ssize_t scratch)
{
    return is_side(size.width) && is_side(size.height) && is_side(resized.width) && is_side(resized.height)
        && 1 <= filter && filter < (int)(sizeof FILTERS / sizeof *FILTERS)
        && 0 <= window.left && window.left < resized.width && 0 <= window.top && window.top < resized.height
        && 1 <= window.width && window.width <= resized.width - window.left
        && 1 <= window.height && window.height <= resized.height - window.top
        && (int64_t)size.width * size.height * CHANNELS == source
        && (int64_t)window.width * window.height * CHANNELS == target && scratch_bytes(size, resized, window) <= scratch;
}

PyDoc_STRVAR(resize_doc, "resize(source, size, resized, resample, window, target, scratch): see _resize.pyi");

static PyObject *resize_from_python(PyObject *module, PyObject *arguments)
{
    Py_buffer source, target, scratch;
    Size size, resized;
    Window window;
    int filter, has_memory = 0;
    if (!PyArg_ParseTuple(arguments, "y*(ii)(ii)i(iiii)w*w*", &source, &size.width, &size.height, &resized.width,
                          &resized.height, &filter, &window.left, &window.top, &window.width, &window.height, &target,
                          &scratch))
        return NULL;
    if (is_possible(size, resized, filter, window, source.len, target.len, scratch.len)) {
        Py_BEGIN_ALLOW_THREADS
        has_memory = resize(source.buf, size, resized, &FILTERS[filter], window, target.buf, scratch.buf);
        Py_END_ALLOW_THREADS
        if (!has_memory) PyErr_NoMemory();
    } else {
        PyErr_SetString(PyExc_ValueError, "sizes, filter, window and buffers do not fit together");
    }
    PyBuffer_Release(&source);
    PyBuffer_Release(&target);
    PyBuffer_Release(&scratch);
    return has_memory ? Py_NewRef(Py_None) : NULL;
}

static PyMethodDef METHODS[] = {{"resize", resize_from_python, METH_VARARGS, resize_doc}, {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot SLOTS[] = {{0, NULL}};

static struct PyModuleDef MODULE = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "_resize", .m_methods = METHODS, .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__resize(void) { return PyModuleDef_Init(&MODULE); }
