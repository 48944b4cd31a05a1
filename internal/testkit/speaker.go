package testkit

// COM1 and COM2 are the I/O ports of a PC's serial ports.
const (
	COM1 = 0x3f8
	COM2 = 0x2f8
)

// Speaker returns a disk of size bytes whose boot sector writes text to a serial port and halts: the smallest virtual
// machine that shows that it has booted, and from which image.
func Speaker(size int, port uint16, text string) []byte {
	lo, hi := byte(port), byte(port>>8)
	code := []byte{
		0xfc,                   // cld
		0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
		0xbe, 0x39, 0x7c, // mov si, the text
		// Set 115200 baud, 8 bits: otherwise VirtualBox's port stays silent.
		0xba, lo + 3, hi, 0xb0, 0x83, 0xee, // mov dx, port+3; mov al, 83h; out dx, al
		0xba, lo, hi, 0xb0, 0x01, 0xee, // mov dx, port; mov al, 1; out dx, al
		0x42, 0xb0, 0x00, 0xee, // inc dx; mov al, 0; out dx, al
		0xba, lo + 3, hi, 0xb0, 0x03, 0xee, // mov dx, port+3; mov al, 3; out dx, al
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x12, // jz end
		0x88, 0xc4, // mov ah, al
		0xba, lo + 5, hi, // mov dx, port+5
		0xec,       // busy: in al, dx
		0xa8, 0x20, // test al, 20h
		0x74, 0xfb, // jz busy
		0x88, 0xe0, // mov al, ah
		0xba, lo, hi, // mov dx, port
		0xee,       // out dx, al
		0xeb, 0xe9, // jmp next
		0xfb,       // end: sti
		0xf4,       // hlt
		0xeb, 0xfc, // jmp end
	}
	disk := make([]byte, size)
	copy(disk, append(code, text...))
	disk[510], disk[511] = 0x55, 0xaa
	return disk
}
