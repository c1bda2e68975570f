import Glibc

/// A file of the local state that could not be written, read or removed.
public struct FileError: Error, Hashable, CustomStringConvertible {
  public let path: String
  public let operation: String
  public let errno: CInt

  public init(path: String, operation: String, errno: CInt) {
    self.path = path
    self.operation = operation
    self.errno = errno
  }

  public var description: String { "\(operation) \(path): \(String(cString: strerror(errno)))" }
}

/// Endpoint records as files, one each, in a folder that only root can read. A reader sees a whole record or none.
public struct EndpointRecordStore: Sendable {
  public let directory: String

  public init(directory: String = LocalAPIDefaults.endpointDirectory) { self.directory = directory }

  /// What a folder held. `unreadable` are reported, not fatal: one bad file must not hide the others.
  public struct Listing: Sendable {
    public var records: [EndpointRecord] = []
    public var unreadable: [(path: String, reason: String)] = []
  }

  public func path(of record: EndpointRecord) -> String { "\(directory)/\(record.fileName)" }

  public func write(_ record: EndpointRecord) throws(FileError) {
    try LocalFile.createDirectories(directory)
    // Of this boot: nobody reads it after a power cut.
    try LocalFile.replace(path(of: record), with: Array(record.json.serialized().utf8), sync: false)
  }

  /// Succeeds also when there is no such record. Takes along what a writer that was killed left of it.
  public func remove(network: String, containerID: String, interfaceName: String) throws(FileError) {
    let name = EndpointRecord.fileName(network: network, containerID: containerID, interfaceName: interfaceName)
    for found in try LocalFile.names(in: directory) where found == name || found.hasPrefix(".\(name).") {
      try LocalFile.remove("\(directory)/\(found)")
    }
  }

  /// nil when there is none. A record that cannot be read is an error of its field or file.
  public func record(network: String, containerID: String, interfaceName: String) throws -> EndpointRecord? {
    let name = EndpointRecord.fileName(network: network, containerID: containerID, interfaceName: interfaceName)
    guard let bytes = try LocalFile.read("\(directory)/\(name)") else { return nil }
    return try EndpointRecord(json: JSONValue(parsing: bytes))
  }

  /// All records, oldest first. A folder that does not exist holds none.
  public func list() throws(FileError) -> Listing {
    var listing = Listing()
    for name in try LocalFile.names(in: directory) where name.hasSuffix(".json") && !name.hasPrefix(".") {
      let path = "\(directory)/\(name)"
      do {
        guard let bytes = try LocalFile.read(path) else { continue }
        let record = try EndpointRecord(json: JSONValue(parsing: bytes))
        if record.fileName == name {
          listing.records.append(record)
        } else {
          listing.unreadable.append((path, "the content belongs to \(record.fileName)"))
        }
      } catch {
        listing.unreadable.append((path, "\(error)"))
      }
    }
    listing.records.sort { ($0.createdAt, $0.fileName) < ($1.createdAt, $1.fileName) }
    return listing
  }
}
