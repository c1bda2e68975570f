/// What unquoted text is for YAML 1.1 and JSON, and when a time was.

import Glibc

/// A number as kubectl's YAML reader sees one.
enum YAMLNumber: Equatable {
  case integer(Int)
  /// Also an integer too large to matter.
  case other

  /// nil where the text is no number.
  init?(_ text: String) {
    let bytes = Array(text.utf8.filter { $0 != UInt8(ascii: "_") })
    guard let first = bytes.first, bytes.count <= 64 else { return nil }
    let isSigned = first == UInt8(ascii: "+") || first == UInt8(ascii: "-")
    let digits = bytes[(isSigned ? 1 : 0)...]
    // Nearly every scalar that is asked is a word.
    guard let lead = digits.first, Self.isDigit(lead) || lead == UInt8(ascii: "."), text.utf8.first != UInt8(ascii: "_")
    else { return nil }
    if let magnitude = Self.integerMagnitude(digits) {
      self = .integer(first == UInt8(ascii: "-") ? -magnitude : magnitude)
    } else if let double = Self.double(digits) {
      let value = first == UInt8(ascii: "-") ? -double : double
      // Above 2^53 a double no longer says which integer is meant.
      self = abs(value) < 0x20_0000_0000_0000 && value == value.rounded() ? .integer(Int(value)) : .other
    } else if [".inf", ".nan"].contains(String(decoding: digits, as: UTF8.self).lowercased()) {
      self = .other
    } else {
      return nil
    }
  }

  private static func isDigit(_ byte: UInt8) -> Bool { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) }

  private static func integerMagnitude(_ digits: ArraySlice<UInt8>) -> Int? {
    let text = String(decoding: digits, as: UTF8.self)
    guard digits.count > 1, digits.first == UInt8(ascii: "0") else {
      return digits.allSatisfy(isDigit) ? Int(text) : nil
    }
    // `Int(_:radix:)` takes a sign of its own, which must not stand behind a prefix.
    func number(skipping count: Int, radix: Int) -> Int? {
      let rest = digits.dropFirst(count)
      guard let first = rest.first, first != UInt8(ascii: "+"), first != UInt8(ascii: "-") else { return nil }
      return Int(String(decoding: rest, as: UTF8.self), radix: radix)
    }
    switch digits[digits.startIndex + 1] {
    case UInt8(ascii: "x"), UInt8(ascii: "X"): return number(skipping: 2, radix: 16)
    case UInt8(ascii: "o"), UInt8(ascii: "O"): return number(skipping: 2, radix: 8)
    case UInt8(ascii: "b"), UInt8(ascii: "B"): return number(skipping: 2, radix: 2)
    default: return number(skipping: 1, radix: 8)
    }
  }

  private static func double(_ digits: ArraySlice<UInt8>) -> Double? {
    // `Double(_:)` also reads "0x1p3", "nan" and "infinity", which YAML does not call numbers.
    let allowed = "0123456789.eE+-".utf8
    guard digits.allSatisfy(allowed.contains), digits.contains(where: isDigit) else { return nil }
    let text = String(decoding: digits, as: UTF8.self)
    return Double(text.hasPrefix(".") ? "0" + text : text.hasSuffix(".") ? text + "0" : text)
  }
}

/// RFC 3339, `2026-01-31T12:00:00.123456789Z` or with an offset, as unix time in milliseconds; nil for anything else.
func unixMilliseconds(rfc3339 text: String) -> Int64? {
  let bytes = Array(text.utf8)
  guard (20...40).contains(bytes.count), bytes[4] == UInt8(ascii: "-"), bytes[7] == UInt8(ascii: "-"),
    bytes[10] | 0x20 == UInt8(ascii: "t"), bytes[13] == UInt8(ascii: ":"), bytes[16] == UInt8(ascii: ":")
  else { return nil }
  func number(_ range: Range<Int>, _ allowed: ClosedRange<Int>) -> Int? {
    var value = 0
    for byte in bytes[range] {
      guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) else { return nil }
      value = value * 10 + Int(byte - UInt8(ascii: "0"))
    }
    return allowed.contains(value) ? value : nil
  }
  guard let year = number(0..<4, 0...9999), let month = number(5..<7, 1...12), let day = number(8..<10, 1...31),
    let hour = number(11..<13, 0...23), let minute = number(14..<16, 0...59), let second = number(17..<19, 0...60)
  else { return nil }
  var position = 19
  var milliseconds = 0
  if bytes[position] == UInt8(ascii: ".") {
    let fraction = bytes[20...].prefix { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }
    guard !fraction.isEmpty else { return nil }
    let digits = (Array(fraction) + Array(repeating: UInt8(ascii: "0"), count: 3)).prefix(3)
    milliseconds = digits.reduce(0) { $0 * 10 + Int($1 - UInt8(ascii: "0")) }
    position = fraction.endIndex
  }
  guard position < bytes.count else { return nil }
  var offset = 0
  switch bytes[position] {
  case UInt8(ascii: "Z"), UInt8(ascii: "z"):
    guard position == bytes.count - 1 else { return nil }
  case UInt8(ascii: "+"), UInt8(ascii: "-"):
    guard bytes.count == position + 6, bytes[position + 3] == UInt8(ascii: ":"),
      let hours = number(position + 1..<position + 3, 0...23), let minutes = number(position + 4..<position + 6, 0...59)
    else { return nil }
    offset = (hours * 60 + minutes) * (bytes[position] == UInt8(ascii: "-") ? -60 : 60)
  default: return nil
  }
  // Days of the proleptic Gregorian calendar, counted from March so that the leap day comes last.
  let shifted = month > 2 ? year : year - 1
  let era = (shifted >= 0 ? shifted : shifted - 399) / 400
  let yearOfEra = shifted - era * 400
  let dayOfYear = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1
  let days = era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
  let seconds = days * 86400 + hour * 3600 + minute * 60 + second - offset
  return Int64(seconds) * 1000 + Int64(milliseconds)
}

/// The other way round: `2026-01-31T12:00:00Z`. A time of no year from 0 to 9999 becomes a text that is none.
public func rfc3339(unixSeconds: Int64) -> String {
  var (seconds, parts) = (time_t(unixSeconds), tm())
  guard gmtime_r(&seconds, &parts) != nil else { return "unix time \(unixSeconds)" }
  func padded(_ number: CInt, _ count: Int) -> String {
    let digits = "\(number)"
    return String(repeating: "0", count: max(0, count - digits.count)) + digits
  }
  return "\(padded(parts.tm_year &+ 1900, 4))-\(padded(parts.tm_mon + 1, 2))-\(padded(parts.tm_mday, 2))"
    + "T\(padded(parts.tm_hour, 2)):\(padded(parts.tm_min, 2)):\(padded(parts.tm_sec, 2))Z"
}
