import CLibBPF
import Netlink

/// What a map is like.
struct MapInfo: Equatable, CustomStringConvertible {
  var type: UInt32
  var keySize: Int
  var valueSize: Int
  /// Most elements.
  var maximum: Int
  var flags: UInt32

  init(type: UInt32, keySize: Int, valueSize: Int, maximum: Int, flags: UInt32) {
    (self.type, self.keySize, self.valueSize) = (type, keySize, valueSize)
    (self.maximum, self.flags) = (maximum, flags)
  }

  var description: String {
    "type \(type), key of \(keySize) bytes, value of \(valueSize), \(maximum) elements, flags \(flags)"
  }

  /// Of a map in the kernel.
  init(_ descriptor: CInt, _ name: String) throws(SystemError) {
    var info = bpf_map_info()
    var size = UInt32(MemoryLayout<bpf_map_info>.size)
    try check("ask about map", name) { bpf_obj_get_info_by_fd(descriptor, &info, &size) }
    (type, keySize, valueSize) = (info.type, Int(info.key_size), Int(info.value_size))
    (maximum, flags) = (Int(info.max_entries), info.map_flags)
  }
}
