import DataplaneModel
import Glibc
import KubernetesObjects
import LocalAPI
import NetworkTypes
import ServiceCompiler

/// Numbers of service ports, kept in a file to which each new one is appended: a restarted agent, or one on a rebooted
/// node, gives every service port its old number.
///
/// A number is on disk before any packet can meet it. Lines are `number TAB name`; a torn last line (the machine lost
/// power) is dropped.
struct NumberJournal: ServiceNumbering {
  private var numbers: [ServicePortName: ServicePortID] = [:]
  private var next: UInt32 = 1
  private let path: String
  private let descriptor: CInt
  /// Why the last assignment failed.
  private(set) var failure: String?

  /// Opens or creates the journal. Numbers up to `floor` are taken, whatever the file says: the kernel has them.
  init(path: String, floor: UInt32) throws {
    self.path = path
    let bytes = try LocalFile.read(path) ?? []
    let complete = bytes.lastIndex(of: UInt8(ascii: "\n")).map { $0 + 1 } ?? 0
    for line in bytes[..<complete].split(separator: UInt8(ascii: "\n")) {
      let fields = line.split(separator: UInt8(ascii: "\t"), maxSplits: 1)
      guard fields.count == 2, let number = UInt32(String(decoding: fields[0], as: UTF8.self)),
        let id = ServicePortID(number), let name = Self.parse(String(decoding: fields[1], as: UTF8.self))
      else { continue }
      numbers[name] = id
      next = max(next, number + 1)
    }
    next = max(next, floor + 1)
    descriptor = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw FileError(path: path, operation: "open", errno: errno) }
    if complete < bytes.count { ftruncate(descriptor, off_t(complete)) }
  }

  mutating func number(of name: ServicePortName) -> ServicePortID? {
    if let known = numbers[name] { return known }
    guard let fresh = ServicePortID(next) else {
      failure = "all \(ServicePortID.maximum) service numbers are used"
      return nil
    }
    let line = Array("\(fresh.rawValue)\t\(name)\n".utf8)
    guard write(descriptor, line, line.count) == line.count else {
      failure = "\(path): \(String(cString: strerror(errno)))"
      return nil
    }
    failure = nil
    numbers[name] = fresh
    next += 1
    return fresh
  }

  /// Makes what was written outlast a power cut; once per change, before the kernel is programmed.
  func sync() { fdatasync(descriptor) }

  /// The inverse of `ServicePortName.description`.
  private static func parse(_ text: String) -> ServicePortName? {
    guard let slash = text.lastIndex(of: "/"),
      let proto = L4Protocol(kubernetesName: text[text.index(after: slash)...].uppercased())
    else { return nil }
    let rest = text[..<slash]
    // A host port's address, behind it, may have colons too.
    guard let colon = rest.firstIndex(of: ":"), let first = rest.firstIndex(of: "/"), first < colon else { return nil }
    return ServicePortName(
      service: ObjectKey(
        namespace: String(rest[..<first]), name: String(rest[rest.index(after: first)..<colon])),
      port: String(rest[rest.index(after: colon)...]), proto: proto)
  }
}
