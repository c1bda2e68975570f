/// Bytes that come in pieces of any size and are taken in pieces that mean something. It holds what has not been taken, and
/// no more.
struct ByteQueue {
  private(set) var bytes: [UInt8] = []
  /// What stands before has been taken.
  private(set) var start = 0

  var count: Int { bytes.count - start }
  /// Where what is left stands in `bytes`.
  var range: Range<Int> { start..<bytes.count }

  mutating func append(_ more: some Sequence<UInt8>) {
    // Moved together once what has been taken is the larger part, so that a byte is moved once on the average.
    if start > bytes.count / 2 {
      bytes.removeFirst(start)
      start = 0
    }
    bytes += more
  }

  mutating func take(_ count: Int) -> Range<Int> {
    let range = start..<start + count
    start += count
    return range
  }
}
