import CLibBPF
import Glibc
import Netlink

/// A key or a value as the kernel holds it: a C structure of bpf/include/tables.h, byte for byte.
public protocol MapLayout: BitwiseCopyable, Sendable, Hashable {
  init()
}

extension UInt32: MapLayout {}
extension UInt64: MapLayout {}

/// What a map without room answers: hash maps E2BIG, prefixes ENOSPC.
enum MapIsFull {
  static func error(_ map: String, _ maximum: Int, _ result: CInt) -> SystemError? {
    guard result == -E2BIG || result == -ENOSPC else { return nil }
    return SystemError(
      operation: "write to", object: map, errno: ENOSPC,
      detail: "map \(map) is full: it has room for \(maximum) elements; what is in it stays")
  }
}

/// One map of the kernel, with keys and values of known layout.
public struct BPFMap<Key: MapLayout, Value: MapLayout>: ~Copyable, Sendable {
  public let name: String
  private let descriptor: FileDescriptor
  private let maximum: Int

  /// - Throws: where the kernel's key or value has another size.
  init(_ name: String, owning descriptor: consuming FileDescriptor) throws(SystemError) {
    let info = try MapInfo(descriptor.number, name)
    guard info.keySize == MemoryLayout<Key>.stride, info.valueSize == MemoryLayout<Value>.stride else {
      throw SystemError(
        operation: "open map", object: name, errno: EINVAL,
        detail: "its key has \(info.keySize) bytes and its value \(info.valueSize); ours have "
          + "\(MemoryLayout<Key>.stride) and \(MemoryLayout<Value>.stride)")
    }
    self.name = name
    self.descriptor = descriptor
    maximum = info.maximum
  }

  public subscript(key: Key) -> Value? {
    get throws(SystemError) {
      var value = Value()
      let result = withUnsafePointer(to: key) { bpf_map_lookup_elem(descriptor.number, $0, &value) }
      if result == -ENOENT { return nil }
      try check("look up in", name) { result }
      return value
    }
  }

  public func set(_ key: Key, _ value: Value) throws(SystemError) {
    let result = withUnsafePointer(to: key) { key in
      withUnsafePointer(to: value) { bpf_map_update_elem(descriptor.number, key, $0, UInt64(BPF_ANY)) }
    }
    if let full = MapIsFull.error(name, maximum, result) { throw full }
    try check("write to", name) { result }
  }

  /// - Returns: whether it was there.
  @discardableResult
  public func remove(_ key: Key) throws(SystemError) -> Bool {
    let result = withUnsafePointer(to: key) { bpf_map_delete_elem(descriptor.number, $0) }
    if result == -ENOENT { return false }
    try check("delete from", name) { result }
    return true
  }

  /// Writes many at once: half the time of one by one.
  public func set(_ elements: [(key: Key, value: Value)]) throws(SystemError) {
    guard elements.count > 1 else {
      for element in elements { try set(element.key, element.value) }
      return
    }
    let (keys, values) = (elements.map(\.key), elements.map(\.value))
    var done = 0
    while done < elements.count {
      var count = UInt32(elements.count - done)
      var options = bpf_map_batch_opts()
      options.sz = MemoryLayout<bpf_map_batch_opts>.size
      let result = keys.withUnsafeBufferPointer { keys in
        values.withUnsafeBufferPointer { values in
          bpf_map_update_batch(
            descriptor.number, keys.baseAddress?.advanced(by: done), values.baseAddress?.advanced(by: done), &count,
            &options)
        }
      }
      // LPM tries learned it in 5.19 only: nothing has been written then, whatever `count` says.
      if result == -524 || result == -EINVAL || result == -EOPNOTSUPP {
        for element in elements[done...] { try set(element.key, element.value) }
        return
      }
      // Else the kernel has written `count` of them, whatever it answers.
      done += Int(count)
      if result < 0, result != -EINTR, result != -EAGAIN {
        if let full = MapIsFull.error(name, maximum, result) { throw full }
        throw SystemError(operation: "write \(elements.count) elements to", object: name, errno: -result)
      }
    }
  }

  public func remove(_ keys: [Key]) throws(SystemError) {
    for key in keys { try remove(key) }
  }

  /// Every key, as `elements`.
  public func keys() throws(SystemError) -> Set<Key> {
    var found: Set<Key> = []
    var previous: Key?
    while let next = try key(after: previous) {
      found.insert(next)
      previous = next
    }
    return found
  }

  private func key(after previous: Key?) throws(SystemError) -> Key? {
    var next = Key()
    let result =
      if let previous {
        withUnsafePointer(to: previous) { bpf_map_get_next_key(descriptor.number, $0, &next) }
      } else {
        bpf_map_get_next_key(descriptor.number, nil, &next)
      }
    if result == -ENOENT { return nil }
    try check("list", name) { result }
    return next
  }

  /// Every element. What others write meanwhile may be there or not; what nobody touches is there once.
  ///
  /// By single steps: a deletion meanwhile makes the kernel begin anew, and elements seen are then skipped here.
  public func elements() throws(SystemError) -> [Key: Value] {
    var found: [Key: Value] = [:]
    var previous: Key?
    while let next = try key(after: previous) {
      if let value = try self[next] { found[next] = value }
      previous = next
    }
    return found
  }
}
