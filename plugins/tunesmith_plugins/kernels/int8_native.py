"""The int8 layers' part of the C interface, as ctypes sees it."""

from __future__ import annotations

import ctypes


class LayerArgs(ctypes.Structure):
    """``ts_int8_layer`` of tunesmith.h."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("sum", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("activation", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class LinearsArgs(ctypes.Structure):
    """``ts_int8_args`` of tunesmith.h."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("mode", ctypes.c_int32),
        ("group_size", ctypes.c_int64),
        ("layers", ctypes.POINTER(LayerArgs)),
        ("layer_count", ctypes.c_int64),
        ("static_scale", ctypes.c_float),
        ("static_zero_point", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]
