import CLinux

/// One message as it came from the kernel.
public struct NetlinkMessage: Sendable, Hashable {
  public let type: UInt16
  public let flags: UInt16
  public let sequence: UInt32
  public let portID: UInt32
  /// Behind the header: the family's fixed struct, then attributes.
  public let payload: ArraySlice<UInt8>

  public init(type: UInt16, flags: UInt16, sequence: UInt32, portID: UInt32, payload: ArraySlice<UInt8>) {
    self.type = type
    self.flags = flags
    self.sequence = sequence
    self.portID = portID
    self.payload = payload
  }

  /// Splits a datagram into its messages.
  public static func parse(_ datagram: ArraySlice<UInt8>) throws(MalformedNetlink) -> [NetlinkMessage] {
    var messages: [NetlinkMessage] = []
    var rest = datagram
    while !rest.isEmpty {
      let offset = rest.startIndex - datagram.startIndex
      guard let length = rest.number(at: 0, as: UInt32.self).map(Int.init), length >= 16, length <= rest.count,
        let type = rest.number(at: 4, as: UInt16.self), let flags = rest.number(at: 6, as: UInt16.self),
        let sequence = rest.number(at: 8, as: UInt32.self), let portID = rest.number(at: 12, as: UInt32.self)
      else { throw MalformedNetlink(offset: offset, reason: "message length does not fit") }
      let payload = rest[(rest.startIndex + 16)..<(rest.startIndex + length)]
      messages.append(NetlinkMessage(type: type, flags: flags, sequence: sequence, portID: portID, payload: payload))
      rest = rest.dropFirst((length + 3) & ~3)
    }
    return messages
  }

  /// The fixed struct at the start of the payload. Short payloads are an error, never read past.
  public func fixed<Struct: BitwiseCopyable>(_ type: Struct.Type) throws(MalformedNetlink) -> Struct {
    guard payload.count >= MemoryLayout<Struct>.size else {
      throw MalformedNetlink(offset: 0, reason: "\(payload.count) bytes, too few for \(type)")
    }
    return payload.withUnsafeBytes { $0.loadUnaligned(as: type) }
  }

  /// The attributes behind a fixed struct of type `Struct`.
  public func attributes<Struct: BitwiseCopyable>(after type: Struct.Type) throws(MalformedNetlink) -> NetlinkAttributes
  {
    try NetlinkAttributes(payload.dropFirst((MemoryLayout<Struct>.size + 3) & ~3))
  }
}

/// The attributes of a message or a nest, checked whole when made: what is in here lies within bounds.
public struct NetlinkAttributes: Sendable, Hashable, RandomAccessCollection {
  private let attributes: [NetlinkAttribute]

  public init(_ bytes: ArraySlice<UInt8>) throws(MalformedNetlink) {
    var attributes: [NetlinkAttribute] = []
    var rest = bytes
    while !rest.isEmpty {
      let offset = rest.startIndex - bytes.startIndex
      guard let length = rest.number(at: 0, as: UInt16.self).map(Int.init),
        let type = rest.number(at: 2, as: UInt16.self), length >= 4, length <= rest.count
      else { throw MalformedNetlink(offset: offset, reason: "attribute length does not fit") }
      let content = rest[(rest.startIndex + 4)..<(rest.startIndex + length)]
      // The two highest bits are NLA_F_NESTED and NLA_F_NET_BYTEORDER.
      attributes.append(NetlinkAttribute(type: type & 0x3fff, content: content))
      rest = rest.dropFirst((length + 3) & ~3)
    }
    self.attributes = attributes
  }

  public var startIndex: Int { 0 }
  public var endIndex: Int { attributes.count }
  public subscript(position: Int) -> NetlinkAttribute { attributes[position] }

  /// The attribute of this type; the last one where a type occurs twice, as the kernel reads it.
  public func last(_ type: some BinaryInteger) -> NetlinkAttribute? { attributes.last { $0.type == UInt16(type) } }

  public func number<Number: FixedWidthInteger & BitwiseCopyable>(
    _ type: some BinaryInteger, as number: Number.Type = Number.self
  ) throws(MalformedNetlink) -> Number? {
    guard let attribute = last(type) else { return nil }
    return try attribute.number(as: number)
  }

  public func string(_ type: some BinaryInteger) -> String? { last(type)?.string }

  public func nested(_ type: some BinaryInteger) throws(MalformedNetlink) -> NetlinkAttributes? {
    guard let attribute = last(type) else { return nil }
    return try attribute.nested()
  }
}

/// One attribute: a type without its flag bits, and its content.
public struct NetlinkAttribute: Sendable, Hashable {
  public let type: UInt16
  public let content: ArraySlice<UInt8>

  /// A number in host byte order; exactly as long as `Number`.
  public func number<Number: FixedWidthInteger & BitwiseCopyable>(
    as type: Number.Type = Number.self
  ) throws(MalformedNetlink) -> Number {
    guard content.count == MemoryLayout<Number>.size, let number = content.number(at: 0, as: type) else {
      throw MalformedNetlink(
        offset: 0, reason: "attribute \(self.type) has \(content.count) bytes, wanted \(MemoryLayout<Number>.size)")
    }
    return number
  }

  /// Up to the first zero byte; bytes that are not UTF-8 are replaced.
  public var string: String { String(decoding: content.prefix { $0 != 0 }, as: UTF8.self) }

  public func nested() throws(MalformedNetlink) -> NetlinkAttributes { try NetlinkAttributes(content) }
}

extension ArraySlice<UInt8> {
  /// A number in host byte order, `offset` bytes from the start; nil where there are too few bytes.
  func number<Number: FixedWidthInteger & BitwiseCopyable>(at offset: Int, as type: Number.Type) -> Number? {
    guard count >= offset + MemoryLayout<Number>.size else { return nil }
    return withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: type) }
  }
}
