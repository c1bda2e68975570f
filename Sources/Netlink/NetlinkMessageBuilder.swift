import CLinux
import NetworkTypes

/// Builds one netlink request: header, the family's fixed struct, attributes and nests of attributes. Numbers are in
/// the host's byte order unless the name says otherwise, as netlink wants it.
public struct NetlinkMessageBuilder: Sendable, Hashable {
  /// The message so far; its length field is always right.
  public private(set) var bytes: [UInt8]
  /// An attribute was longer than its 16-bit length can say. Such a message is never sent.
  public private(set) var isTooLong = false

  static let headerLength = 16
  static let attributeHeaderLength = 4

  /// `NLM_F_REQUEST` is always set.
  public init(type: some BinaryInteger, flags: CInt = 0) {
    bytes = []
    bytes.reserveCapacity(256)
    put(UInt32(Self.headerLength))
    put(UInt16(truncatingIfNeeded: type))
    put(UInt16(truncatingIfNeeded: flags) | UInt16(NLM_F_REQUEST))
    put(UInt64(0))  // sequence and port id: the socket's business
  }

  public var flags: UInt16 {
    get { UInt16(bytes[6]) | UInt16(bytes[7]) << 8 }
    set { overwrite(at: 6, with: newValue) }
  }

  /// The message as it goes out.
  func finished(sequence: UInt32, portID: UInt32) -> [UInt8] {
    var copy = self
    copy.overwrite(at: 8, with: sequence)
    copy.overwrite(at: 12, with: portID)
    return copy.bytes
  }

  // MARK: The fixed struct

  /// Appends a C struct as it lies in memory.
  public mutating func append<Struct: BitwiseCopyable>(_ value: Struct) {
    withUnsafeBytes(of: value) { bytes += $0 }
    close()
  }

  // MARK: Attributes

  public mutating func attribute(_ type: some BinaryInteger, _ content: some Collection<UInt8>) {
    let length = Self.attributeHeaderLength + content.count
    guard length <= Int(UInt16.max) else {
      isTooLong = true
      return
    }
    put(UInt16(length))
    put(UInt16(truncatingIfNeeded: type))
    bytes += content
    close()
  }

  public mutating func attribute(_ type: some BinaryInteger, number value: some FixedWidthInteger & BitwiseCopyable) {
    withUnsafeBytes(of: value) { attribute(type, $0) }
  }

  /// Network byte order, as netfilter's families want it.
  public mutating func attribute(
    _ type: some BinaryInteger, bigEndian value: some FixedWidthInteger & BitwiseCopyable
  ) {
    attribute(type, number: value.bigEndian)
  }

  /// With its terminating zero.
  public mutating func attribute(_ type: some BinaryInteger, string: String) {
    attribute(type, Array(string.utf8) + [0])
  }

  public mutating func attribute(_ type: some BinaryInteger, address: IPAddress) { attribute(type, address.bytes) }

  /// An attribute whose content is attributes. `NLA_F_NESTED` is set, which strict checking and newer families demand.
  public mutating func nest<Failure: Error>(
    _ type: some BinaryInteger, _ content: (inout NetlinkMessageBuilder) throws(Failure) -> Void
  ) throws(Failure) {
    let start = bytes.count
    put(UInt16(0))
    put(UInt16(truncatingIfNeeded: type) | UInt16(NLA_F_NESTED))
    try content(&self)
    let length = bytes.count - start
    if length <= Int(UInt16.max) {
      overwrite(at: start, with: UInt16(length))
    } else {
      isTooLong = true
    }
    close()
  }

  // MARK: Bytes

  private mutating func put<Number: FixedWidthInteger & BitwiseCopyable>(_ value: Number) {
    withUnsafeBytes(of: value) { bytes += $0 }
  }

  private mutating func overwrite<Number: FixedWidthInteger & BitwiseCopyable>(at offset: Int, with value: Number) {
    withUnsafeBytes(of: value) { bytes.replaceSubrange(offset..<offset + $0.count, with: $0) }
  }

  /// Pads to four bytes and brings the header's length up to date.
  private mutating func close() {
    while bytes.count % 4 != 0 { bytes.append(0) }
    overwrite(at: 0, with: UInt32(bytes.count))
  }
}
