"""Copy the tiles or strips of a TIFF file that a box touches into a small file, which is then read as any other.

The small file has the tags that say what its numbers are. What is read from it is therefore what the whole image holds
there, whatever the compression, the layout and the type of numbers.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tifffile import COMPRESSION, PHOTOMETRIC, TiffPage

from .encoded import Box, UnreadableImage
from .pillow import BYTES_OF_A_PIXEL, WHOLE
from .tiff_pages import reading_pixels

WIDTH, LENGTH, STRIP_OFFSETS, ROWS, STRIP_BYTES = 256, 257, 273, 278, 279
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325

COLOR_MAP, JPEG_TABLES = 320, 347

KEPT = (258, 259, 262, 266, 274, 277, 284, 292, 293, 317, 332, 334, 336, 338, 339, 342, 529, 530, 531, 532)
"""Tags about numbers, colors and compression that are the same for all pages of a series. Text and descriptions are
left out: they would declare slices and channels that the small file has not."""

NODATA = 42113
"""Tag in which GDAL names the value of pixels without data."""

LERC = 50674
"""Tag with the parameters of a compression."""

OF_A_PAGE = (COLOR_MAP, JPEG_TABLES)
"""Tags that each page has for itself."""

LARGEST_TAG = 2**20
"""Bytes of a tag that is kept, at most: tables of colors take 384 KiB."""

LONG, LONG8 = 4, 16
"""Types of values."""

BLOCKS_START = 16
"""Bytes before the first block."""

Tag = tuple[int, int, int, bytes]
"""Code, type, count and value."""


@dataclass(frozen=True)
class Grid:
    """The blocks of a page: tiles, or strips of its full width.

    Attributes:
        height: of the page.
        width: of the page.
        block_height: of a block.
        block_width: of a block.
        planes: that have blocks of their own: bands, where they are not interleaved.
        offsets: of the blocks in the file: of each plane, row by row; 0 of those that are missing on purpose.
        sizes: of the blocks in bytes, likewise 0 of those that are missing.
    """

    height: int
    width: int
    block_height: int
    block_width: int
    planes: int
    offsets: Sequence[int]
    sizes: Sequence[int]

    def around(self, box: Box) -> Box:
        """Return the smallest box of whole blocks that holds a box."""
        return Box(
            box.top // self.block_height * self.block_height,
            box.left // self.block_width * self.block_width,
            min(self.height, -(-box.bottom // self.block_height) * self.block_height),
            min(self.width, -(-box.right // self.block_width) * self.block_width),
        )

    def blocks(self, box: Box) -> Iterator[tuple[int, int]]:
        """Yield offset and size of each block of a box of whole blocks; both are 0 of one that is missing."""
        rows, columns = math.ceil(self.height / self.block_height), math.ceil(self.width / self.block_width)
        for plane in range(self.planes):
            for row in range(box.top // self.block_height, math.ceil(box.bottom / self.block_height)):
                for column in range(box.left // self.block_width, math.ceil(box.right / self.block_width)):
                    index = (plane * rows + row) * columns + column
                    there = self.offsets[index] and self.sizes[index]
                    yield (self.offsets[index], self.sizes[index]) if there else (0, 0)


def can_copy(frames: Sequence[tuple[Any, int]]) -> bool:
    """Return whether blocks of pages can be copied: of numbers as TIFF lays them out, with headers of their own.

    Args:
        frames: series, and number of the page in it, of each.
    """
    return all(_is_plain(series.keyframe) and _position(series, frame) is not None for series, frame in frames)


def least_pixels(frames: Sequence[tuple[Any, int]]) -> int:
    """Return the number of pixels around a single one that are read with it, of pages whose blocks can be copied."""
    page, grids, one = frames[0][0].keyframe, [_grid(series, frame) for series, frame in frames], Box(0, 0, 1, 1)
    rows = _stored_rows(page, grids)
    return (grids[0].around(one) if rows is None else rows.around(one)).pixels


def _is_plain(page: Any) -> bool:
    file = page.parent
    special = file.is_lsm or file.is_stk or file.is_ndpi or page.jpegheader is not None
    depth = max(page.imagedepth, page.tiledepth)
    return not special and depth == 1 and set(page.axes) <= set("SYX") and page.compression != COMPRESSION.OJPEG


def _position(series: Any, frame: int) -> Any:
    """Return the page that holds a frame, or where it begins in a series without gaps; None if neither is known."""
    page = series.keyframe
    bands = math.prod(size for name, size in zip(series.axes, series.shape, strict=True) if name == "S")
    frames = math.prod(series.shape) // (page.imagelength * page.imagewidth * bands)
    if frames > 1 and series.dataoffset is not None:
        return int(series.dataoffset + frame * page.nbytes)
    own = series.pages[frame] if frames == len(series.pages) else None
    return None if own is None or getattr(own, "is_virtual", False) else own


def copy_blocks(frames: Sequence[tuple[Any, int]], box: Box, most: int) -> tuple[bytes, Box] | None:
    """Return a TIFF file of the pixels around a box of pages of the same shape, and the box that it holds.

    Args:
        frames: series, and number of the page in it, of each.
        box: in the file's own order of rows and columns, not empty.
        most: pixels that the small file may have.

    Returns:
        None if it would have more, since blocks are too large.

    Raises:
        UnreadableImage: if blocks are larger than their pixels can need.
    """
    page = frames[0][0].keyframe
    grids = [_grid(series, frame) for series, frame in frames]
    rows = _stored_rows(page, grids)
    held = grids[0].around(box) if rows is None else rows.around(box)
    if held.pixels > most:
        return None
    pages = []
    for (series, frame), grid in zip(frames, grids, strict=True):
        if rows is None:
            blocks = _read_blocks(page, grid, held)
        else:
            blocks = [_read_rows(page, grid, plane, held, rows) for plane in range(grid.planes)]
            grid = replace(grid, block_height=held.height)
        pages.append((_tags(series, frame, held, grid, tiled=page.is_tiled), blocks))
    # Pillow does not read BigTIFF files of big-endian numbers: the small file is of the same kind.
    big = page.parent.is_bigtiff or held.pixels * len(frames) * page.samplesperpixel * page.dtype.itemsize > 2**31
    return _file(page.parent.byteorder, pages, tiled=page.is_tiled, big=big), held


def _grid(series: Any, frame: int) -> Grid:
    page, own = series.keyframe, _position(series, frame)
    height, width = page.imagelength, page.imagewidth
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    if isinstance(own, int):
        size = page.nbytes // planes
        return Grid(
            height, width, height, width, planes, [own + size * plane for plane in range(planes)], [size] * planes
        )
    tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
    return Grid(height, width, tall, wide, planes, own.dataoffsets, own.databytecounts)


@dataclass(frozen=True)
class Rows:
    """How rows of uncompressed strips lie in a file.

    Attributes:
        bytes: of a row.
        width: pixels of a row.
        pixel: bytes of a pixel; 0 if pixels do not begin at bytes, so that rows are read as a whole.
    """

    bytes: int
    width: int
    pixel: int

    def around(self, box: Box) -> Box:
        """Return the smallest box that holds a box and can be read."""
        return box if self.pixel else box._replace(left=0, right=self.width)


def _stored_rows(page: Any, grids: Sequence[Grid]) -> Rows | None:
    """Return how the rows of pages lie in their file; None if blocks can only be read as a whole."""
    if page.is_tiled or page.compression != COMPRESSION.NONE or page.photometric == PHOTOMETRIC.YCBCR:
        return None
    if not all(all(grid.sizes) and all(grid.offsets) for grid in grids):
        return None
    bits = page.bitspersample * (1 if page.planarconfig == 2 else page.samplesperpixel)
    whole = page.bitspersample % 8 == 0 and page.predictor == 1
    return Rows(math.ceil(bits * page.imagewidth / 8), page.imagewidth, bits // 8 if whole else 0)


def _read_rows(page: Any, grid: Grid, plane: int, box: Box, rows: Rows) -> bytes:
    """Return the bytes of a box of one plane.

    Raises:
        UnreadableImage: if they are cut off.
    """
    handle, strips = page.parent.filehandle, math.ceil(grid.height / grid.block_height)
    first, size = (box.left * rows.pixel, box.width * rows.pixel) if rows.pixel else (0, rows.bytes)
    read: list[bytes] = []
    for row in range(box.top, box.bottom):
        strip, below = divmod(row, grid.block_height)
        index = plane * strips + strip
        if (below + 1) * rows.bytes > grid.sizes[index] and not page.is_contiguous:
            raise UnreadableImage(f"row {row} is not in the {grid.sizes[index]} bytes of its strip")
        handle.seek(grid.offsets[index] + below * rows.bytes + first)
        with reading_pixels(page.parent):
            read.append(handle.read(size))
        if len(read[-1]) < size:
            raise UnreadableImage(f"the file is cut off within row {row}")
    return b"".join(read)


def _read_blocks(page: Any, grid: Grid, box: Box) -> list[bytes]:
    """Return the blocks of a box, as they are compressed.

    Raises:
        UnreadableImage: if they are cut off, or larger than their pixels can need.
    """
    handle, blocks = page.parent.filehandle, list(grid.blocks(box))
    bytes_of_a_pixel = max(BYTES_OF_A_PIXEL, page.samplesperpixel * page.bitspersample // 4)
    if (claimed := sum(size for _, size in blocks)) > WHOLE + bytes_of_a_pixel * box.pixels:
        raise UnreadableImage(f"{box.height} x {box.width} pixels cannot need the {claimed} bytes that they claim")
    read = []
    with reading_pixels(page.parent):
        for offset, size in blocks:
            handle.seek(offset)
            read.append(handle.read(size) if size else b"")
            if len(read[-1]) < size:
                raise UnreadableImage(f"the file is cut off within {'a tile' if page.is_tiled else 'a strip'}")
    return read


def _tags(series: Any, frame: int, box: Box, grid: Grid, *, tiled: bool) -> list[Tag]:
    """Return the tags of a page of the small file, but for the places of its blocks.

    Raises:
        UnreadableImage: if one claims more bytes than any needs.
    """
    page, own = series.keyframe, _position(series, frame)
    held = {code: page.tags[code] for code in (*KEPT, NODATA, LERC, *OF_A_PAGE) if code in page.tags}
    if not isinstance(own, int | TiffPage):
        own = own.aspage()
    if not isinstance(own, int):
        held |= {code: own.tags[code] for code in OF_A_PAGE if code in own.tags}
    handle, order = page.parent.filehandle, page.parent.byteorder
    tags = []
    for code, tag in held.items():
        if tag.valuebytecount > LARGEST_TAG:
            raise UnreadableImage(f"its tag {code} cannot need the {tag.valuebytecount} bytes that it claims")
        handle.seek(tag.valueoffset)
        tags.append((code, int(tag.dtype), tag.count, handle.read(tag.valuebytecount)))
    sizes = {WIDTH: box.width, LENGTH: box.height}
    sizes |= {TILE_WIDTH: grid.block_width, TILE_LENGTH: grid.block_height} if tiled else {ROWS: grid.block_height}
    return tags + [(code, LONG, 1, struct.pack(f"{order}I", value)) for code, value in sizes.items()]


def _file(order: str, pages: Sequence[tuple[list[Tag], list[bytes]]], *, tiled: bool, big: bool) -> bytes:
    """Return a TIFF file, or a BigTIFF one, of pages, given by their tags and blocks."""
    number, count = ("Q", "Q") if big else ("I", "H")
    inline = struct.calcsize(number)
    content = bytearray(BLOCKS_START)
    found = []
    for _, blocks in pages:
        starts = [len(content) + before for before in _sums(blocks)]
        found.append([start if block else 0 for start, block in zip(starts, blocks, strict=True)])
        content += b"".join(blocks)
    content += bytes(-len(content) % 8)
    mark, first = b"II" if order == "<" else b"MM", len(content)
    header = struct.pack(f"{order}HHHQ", 43, 8, 0, first) if big else struct.pack(f"{order}HI", 42, first)
    content[: len(mark + header)] = mark + header
    for page, ((tags, blocks), offsets) in enumerate(zip(pages, found, strict=True), start=1):
        form = f"{order}{len(blocks)}{number}"
        places = {
            TILE_OFFSETS if tiled else STRIP_OFFSETS: struct.pack(form, *offsets),
            TILE_BYTES if tiled else STRIP_BYTES: struct.pack(form, *map(len, blocks)),
        }
        kind = LONG8 if big else LONG
        tags = sorted([*tags, *((code, kind, len(blocks), value) for code, value in places.items())])
        head = struct.calcsize(order + count) + len(tags) * (4 + 2 * inline) + inline
        behind = len(content) + head + -head % 8
        entries, values = b"", b""
        for code, kind, length, value in tags:
            entries += struct.pack(f"{order}HH{number}", code, kind, length)
            if len(value) <= inline:
                entries += value.ljust(inline, b"\0")
            else:
                entries += struct.pack(order + number, behind + len(values))
                values += value + bytes(-len(value) % 8)
        following = behind + len(values) if page < len(pages) else 0
        content += struct.pack(order + count, len(tags)) + entries + struct.pack(order + number, following)
        content += bytes(-head % 8) + values
    return bytes(content)


def _sums(blocks: Sequence[bytes]) -> list[int]:
    """Return the number of bytes before each block."""
    sums = [0]
    for block in blocks:
        sums.append(sums[-1] + len(block))
    return sums[:-1]
