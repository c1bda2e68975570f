import CLibNFTNL

@testable import NFTables

/// Stands between an engine and its socket, and makes this kernel one from before Linux 6.9: a flag that such a kernel does
/// not know is replaced by one that no kernel knows, so that the answer is the real one.
final class KernelWithoutPersist {
  /// Tables that were asked for with such a flag.
  private(set) var refused = 0

  init(_ engine: NFTablesEngine) {
    let calls = engine.connection.calls
    // The engine's socket owns this closure, and this object with it.
    engine.connection.calls.send = { [self] socket, bytes in
      var copy = Array(bytes)
      replaceFlags(in: &copy)
      return copy.withUnsafeBytes { calls.send(socket, $0) }
    }
  }

  private func replaceFlags(in bytes: inout [UInt8]) {
    for (start, end) in Self.parts(of: bytes, from: 0, to: bytes.count, lengthBytes: 4) {
      // NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWTABLE; attributes follow the two headers.
      guard bytes[start + 4] == 0, bytes[start + 5] == 10 else { continue }
      for (attribute, _) in Self.parts(of: bytes, from: start + 20, to: end, lengthBytes: 2) {
        let isFlags = bytes[attribute + 2] == UInt8(NFTA_TABLE_FLAGS.rawValue)
        guard isFlags, bytes[attribute + 7] & UInt8(TableFlags.persist.rawValue) != 0 else { continue }
        bytes[attribute + 7] |= 0x80
        refused += 1
      }
    }
  }

  /// Messages or attributes, which begin with their length and are padded to 4 bytes.
  private static func parts(of bytes: [UInt8], from start: Int, to end: Int, lengthBytes: Int) -> [(Int, Int)] {
    var parts: [(Int, Int)] = []
    var place = start
    while end - place >= lengthBytes {
      let length = (0..<lengthBytes).reduce(0) { $0 | Int(bytes[place + $1]) << (8 * $1) }
      guard length >= 4, length <= end - place else { break }
      parts.append((place, place + length))
      place += (length + 3) & ~3
    }
    return parts
  }
}
